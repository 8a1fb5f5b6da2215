//! What stands around the code holds together: the compose file, the settings it mounts, the links in the documents.

use std::fs;
use std::path::Path;

/// Tests run in the root of their package, wherever they were compiled.
const REPOSITORY: &str = ".";

#[test]
fn compose_runs_the_four_services_from_pinned_images() {
    let compose = read("docker-compose.yml");
    let services: Vec<&str> = compose
        .lines()
        .skip_while(|line| *line != "services:")
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .filter_map(|line| line.strip_prefix("  ")?.strip_suffix(':'))
        .filter(|name| !name.starts_with([' ', '#']))
        .collect();
    assert_eq!(services, ["broker", "influxdb", "frostline", "grafana"]);

    let images: Vec<&str> = compose.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
    assert_eq!(images.len(), services.len() - 1, "frostline alone is built here: {images:?}");
    for image in images {
        let (_, version) = image.split_once(':').unwrap_or_else(|| panic!("{image} has no version"));
        let numbers = version.split('.').filter(|number| number.parse::<u32>().is_ok()).count();
        assert_eq!(numbers, 3, "{image} is not pinned");
    }
}

#[test]
fn compose_mounts_only_what_is_in_the_repository() {
    let compose = read("docker-compose.yml");
    let mounted: Vec<&str> = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- ./"))
        .map(|mount| mount.split(':').next().unwrap_or(mount))
        .collect();
    assert!(mounted.len() >= 3, "{mounted:?}");
    for path in mounted {
        assert!(Path::new(REPOSITORY).join(path).exists(), "{path} is mounted and not there");
    }
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut links = 0;
    for document in documents() {
        let directory = Path::new(REPOSITORY).join(&document);
        let directory = directory.parent().expect("a file is in a directory");
        for after in read(&document).split("](").skip(1) {
            let target = after.split([')', '#']).next().unwrap_or(after);
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            assert!(directory.join(target).exists(), "{document} links to {target}, which is not there");
        }
    }
    assert!(links > 0, "the documents link to nothing: this test looks for the wrong thing");
}

/// Returns every document for people.
fn documents() -> Vec<String> {
    let mut documents = Vec::new();
    for directory in ["", "docs/", "docs/decisions/"] {
        let entries = fs::read_dir(Path::new(REPOSITORY).join(directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        documents.extend(names.filter(|name| name.ends_with(".md")).map(|name| format!("{directory}{name}")));
    }
    documents
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(REPOSITORY).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
