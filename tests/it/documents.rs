//! Examples that are run, and lists that are complete.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use frostline::config;

use crate::{REPOSITORY, read, rust_files};

#[test]
fn every_example_of_rules_and_stories_does_what_it_says() {
    let mut stories = 0;
    for (heading, files) in examples("docs/rules.md") {
        let directory = write(&files);
        let output = frostline(directory.path(), "test");
        assert!(output.status.success(), "{heading}: {}", text_of(&output));
        stories += files.values().map(|text| text.matches("[[test]]").count()).sum::<usize>();
    }
    assert!(stories >= 10, "only {stories} stories: this test looks for the wrong thing");
}

#[test]
fn every_example_of_the_configuration_is_sound() {
    let examples = examples("docs/configuration.md");
    assert!(examples.len() >= 2, "only {} examples: this test looks for the wrong thing", examples.len());
    for (heading, files) in examples {
        let directory = write(&files);
        let output = frostline(directory.path(), "check");
        assert!(output.status.success(), "{heading}: {}", text_of(&output));
    }
}

#[test]
fn the_shipped_configuration_is_sound_and_its_stories_come_true() {
    for command in ["check", "test"] {
        let output = frostline(&Path::new(REPOSITORY).join("config"), command);
        assert!(output.status.success(), "{command}: {}", text_of(&output));
    }
}

#[test]
fn the_shipped_settings_are_the_defaults() {
    let empty = tempfile::tempdir().unwrap();
    let defaults = config::load_with_environment(empty.path(), &[]).unwrap().settings;
    let shipped = config::load_with_environment(&Path::new(REPOSITORY).join("config"), &[]).unwrap().settings;
    assert_eq!(format!("{shipped:#?}"), format!("{defaults:#?}"));
}

#[test]
fn keys_that_are_commented_out_in_the_shipped_settings_exist() {
    let mut commented_out = 0;
    let whole: String = read("config/frostline.toml")
        .lines()
        .map(|line| {
            let key_and_value = line.strip_prefix("# ").filter(|text| text.contains(" = \""));
            commented_out += usize::from(key_and_value.is_some());
            format!("{}\n", key_and_value.unwrap_or(line))
        })
        .collect();
    assert!(commented_out >= 5, "only {commented_out} keys are commented out: this test looks for the wrong thing");
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("frostline.toml"), whole).unwrap();
    // The files that it names are not there, and that is all that may be wrong.
    let problems = config::load_with_environment(directory.path(), &[]).err().unwrap_or_default();
    for problem in problems {
        assert!(problem.message.contains("cannot be read"), "{problem}");
    }
}

#[test]
fn every_key_of_the_shipped_settings_is_described() {
    let document = read("docs/configuration.md");
    let mut section = String::new();
    for line in read("config/frostline.toml").lines() {
        let line = line.strip_prefix("# ").filter(|text| text.contains(" = \"")).unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let key = format!("`{section}{key}`");
            assert!(document.contains(&key), "{key} is not in docs/configuration.md");
        }
    }
}

#[test]
fn every_metric_is_described_and_every_metric_described_exists() {
    let mut in_code = BTreeSet::new();
    for file in rust_files("src") {
        let text = read(&file);
        in_code.extend(names_after(&text, "\"frostline_").filter(|(_, end)| *end == Some('"')).map(|(name, _)| name));
    }
    // The persistent totals get their prefix and suffix where they are shown.
    let totals = read("src/pipeline/accounting.rs");
    for line in totals.lines().filter(|line| line.starts_with("pub(crate) const ") && line.contains(": &str = ")) {
        let name = line.split('"').nth(1).expect("a text stands behind the name");
        in_code.insert(format!("{name}_total"));
    }
    let document = read("docs/interfaces.md");
    let described: BTreeSet<String> =
        names_after(&document, "`frostline_").filter(|(_, end)| *end == Some('`')).map(|(name, _)| name).collect();
    assert!(in_code.len() > 40, "only {} metrics: this test looks for the wrong thing", in_code.len());
    let missing: Vec<_> = in_code.difference(&described).collect();
    let unknown: Vec<_> = described.difference(&in_code).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "not described: {missing:?}; not in the code: {unknown:?}");
}

#[test]
fn tests_that_the_architecture_names_exist() {
    let code: String = ["core", "src", "tests"].into_iter().flat_map(rust_files).map(read).collect();
    let document = read("ARCHITECTURE.md");
    let is_test =
        |word: &&str| word.matches('_').count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let named: Vec<&str> = document.split('`').filter(is_test).collect();
    assert!(named.len() >= 10, "only {} tests are named: this test looks for the wrong thing", named.len());
    for name in named {
        assert!(code.contains(&format!("fn {name}(")), "there is no test {name}");
    }
}

#[test]
fn documents_have_one_sentence_a_line() {
    for document in all() {
        let mut in_block = false;
        for (number, line) in read(&document).lines().enumerate() {
            in_block ^= line.starts_with("```");
            // Cells of a table cannot be broken.
            if in_block || line.starts_with('|') {
                continue;
            }
            let text = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches(". ");
            let begins = |after: &str| after.starts_with(|c: char| c.is_ascii_uppercase());
            let has_more = text.split(". ").skip(1).any(begins);
            assert!(!has_more, "{document}:{}: more than one sentence: {line}", number + 1);
        }
    }
}

/// Returns the documents under `docs/` and the architecture.
fn all() -> Vec<String> {
    let mut documents = vec!["ARCHITECTURE.md".to_owned()];
    for directory in ["docs", "docs/decisions"] {
        let entries = fs::read_dir(Path::new(REPOSITORY).join(directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        documents.extend(names.filter(|name| name.ends_with(".md")).map(|name| format!("{directory}/{name}")));
    }
    documents.sort();
    documents
}

/// Returns every name that follows `before`, and the character behind it.
fn names_after<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = (String, Option<char>)> + 'a {
    text.split(before).skip(1).map(|after| {
        let name: String =
            after.chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_').collect();
        let end = after[name.len()..].chars().next();
        (name, end)
    })
}

/// Returns the files that the blocks below each heading amount to; a block says in its first line which file it is.
fn examples(document: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let text = read(document);
    let mut examples = Vec::new();
    for section in text.split("\n## ").skip(1) {
        let heading = section.lines().next().unwrap_or_default().to_owned();
        let mut files = BTreeMap::new();
        for block in section.split("```toml\n# ").skip(1) {
            let (name, content) = block.split_once('\n').unwrap();
            let content = content.split("\n```").next().unwrap();
            assert_eq!(files.insert(name.to_owned(), content.to_owned()), None, "{heading}: {name} stands there twice");
        }
        if !files.is_empty() {
            examples.push((heading, files));
        }
    }
    examples
}

/// Writes files into a configuration directory of their own.
fn write(files: &BTreeMap<String, String>) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = directory.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    directory
}

fn frostline(config_dir: &Path, command: &str) -> Output {
    // Variables of whoever runs the tests must not change what is tried.
    let ours = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("FROSTLINE__"));
    let mut process = Command::new(env!("CARGO_BIN_EXE_frostline"));
    ours.for_each(|name| {
        process.env_remove(name);
    });
    process.arg("--config").arg(config_dir).arg(command).output().unwrap()
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
