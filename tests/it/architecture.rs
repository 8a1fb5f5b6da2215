//! Who may know whom: what ARCHITECTURE.md says of the direction of dependencies.

use std::collections::BTreeSet;

use crate::{read, rust_files};

/// The modules that speak with the outside.
const ADAPTERS: [&str; 4] = ["ingest", "series", "notify", "web"];

/// What every adapter may build upon.
const FOUNDATIONS: [&str; 7] = ["alert", "clock", "config", "health", "history", "journal", "ledger"];

/// Where everything is put together.
const ASSEMBLY: [&str; 4] = ["app", "cli", "demo", "lifecycle"];

#[test]
fn adapters_never_import_each_other() {
    for adapter in ADAPTERS {
        let others = ADAPTERS.into_iter().filter(|other| *other != adapter);
        assert_no_imports(adapter, others);
    }
}

#[test]
fn what_others_build_upon_imports_nothing_of_them() {
    for foundation in FOUNDATIONS {
        assert_no_imports(foundation, ADAPTERS.into_iter().chain(ASSEMBLY).chain(["pipeline"]));
    }
}

#[test]
fn the_pipeline_knows_no_network_and_nothing_knows_the_assembly() {
    assert_no_imports("pipeline", ["ingest", "notify", "web"].into_iter().chain(ASSEMBLY));
    for adapter in ADAPTERS {
        assert_no_imports(adapter, ASSEMBLY.into_iter());
    }
    for adapter in ["ingest", "series", "notify"] {
        assert_no_imports(adapter, ["pipeline"].into_iter());
    }
}

#[test]
fn alerts_are_published_by_the_outbox_alone() {
    for file in rust_files("src") {
        let path = file.to_string_lossy();
        if path.contains("/src/ingest/") || path.ends_with("/src/app.rs") {
            continue;
        }
        let names_publisher =
            read(&file).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "Publisher");
        assert!(!names_publisher, "{path} knows the client that publishes; only app.rs gives it to the outbox");
    }
}

#[test]
fn the_core_depends_on_nothing_that_has_a_clock_a_disk_or_a_network() {
    let allowed = ["foldhash", "jiff", "postcard", "serde", "serde_json", "sha2", "thiserror"];
    for dependency in dependencies("core/Cargo.toml") {
        assert!(allowed.contains(&dependency.as_str()), "core depends on {dependency}");
    }
    for file in rust_files("core/src").into_iter().filter(|file| !file.ends_with("tests.rs")) {
        let text = read(&file);
        for forbidden in ["std::env", "std::fs", "std::net", "std::process", "std::thread", "std::time", "::now()"] {
            assert!(!text.contains(forbidden), "{} has {forbidden}", file.display());
        }
    }
}

#[test]
fn simulators_share_nothing_with_the_core() {
    let shared = dependencies("simulators/Cargo.toml").into_iter().find(|name| name.starts_with("frostline"));
    assert_eq!(shared, None, "a fleet that is made by the code that judges it proves nothing");
}

#[test]
fn imports_are_found_however_they_are_written() {
    let text =
        "use crate::ledger::{Ledger, Cursor};\nuse crate::{\n    config::{A, B},\n    web,\n};\ncrate::series::Feed\n";
    assert_eq!(imports(text), ["config", "ledger", "series", "web"].map(str::to_owned).into());
}

fn assert_no_imports(module: &str, forbidden: impl Iterator<Item = &'static str>) {
    let path = if std::path::Path::new(crate::REPOSITORY).join(format!("src/{module}.rs")).exists() {
        format!("src/{module}.rs")
    } else {
        format!("src/{module}")
    };
    let forbidden: Vec<&str> = forbidden.collect();
    for file in rust_files(path).into_iter().filter(|file| !file.ends_with("tests.rs")) {
        for import in imports(&read(&file)) {
            assert!(!forbidden.contains(&import.as_str()), "{} imports {import}", file.display());
        }
    }
}

/// Returns the modules of the crate that a text names by `crate::`.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for after in text.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => found.insert(first_word(after)),
            Some(group) => {
                let mut depth = 0;
                let mut at_start = true;
                for (position, character) in group.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => at_start = true,
                        _ if at_start && !character.is_whitespace() => {
                            found.insert(first_word(&group[position..]));
                            at_start = false;
                        }
                        _ => {}
                    }
                }
                continue;
            }
        };
    }
    found
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Returns what a manifest depends on, tests apart.
fn dependencies(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = read(manifest).parse().unwrap();
    let dependencies = manifest["dependencies"].as_table().unwrap();
    assert!(!dependencies.is_empty());
    dependencies.keys().cloned().collect()
}
