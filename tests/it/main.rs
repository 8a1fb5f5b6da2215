//! What the documents say, held against the code.

mod architecture;
mod documents;

use std::fs;
use std::path::{Path, PathBuf};

/// Tests run in the root of their package, wherever they were compiled.
const REPOSITORY: &str = ".";

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(REPOSITORY).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns every Rust file at or below a path of the repository.
fn rust_files(path: impl AsRef<Path>) -> Vec<PathBuf> {
    let path = Path::new(REPOSITORY).join(path);
    if path.is_file() {
        return vec![path];
    }
    let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|entry| entry.is_dir() || entry.extension().is_some_and(|extension| extension == "rs"))
        .flat_map(rust_files)
        .collect();
    files.sort();
    files
}
