use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What the journal asks of a file system; a trait so that tests can let it fail.
pub trait FileSystem: Send + Sync {
    /// Creates a directory and those above it, where they are missing.
    fn create_directory(&self, directory: &Path) -> io::Result<()>;
    /// Returns the names of the files in a directory, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Creates an empty file for reading and writing, in place of one that may be there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn JournalFile>>;
    /// Opens a file that exists, for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn JournalFile>>;
    /// Opens a file that exists, for reading.
    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn JournalFile>>;
    /// Gives a file another name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Deletes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Forces to disk which files a directory has.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// An open file of a [`FileSystem`].
pub trait JournalFile: Send + Sync {
    /// Returns how many bytes the file has.
    fn length(&self) -> io::Result<u64>;
    /// Reads into `buffer` from `position`; may read less, and reads nothing at the end.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    /// Writes from `bytes` at `position`; may write less.
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize>;
    /// Forces the content to disk, and of what describes the file as much as reading it back needs.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts the file to `length`.
    fn truncate(&self, length: u64) -> io::Result<()>;
}

/// The machine's file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealFileSystem;

impl FileSystem for RealFileSystem {
    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        // A name that is not UTF-8 is none of ours, whatever it becomes here.
        fs::read_dir(directory)?.map(|file| Ok(file?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn JournalFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn JournalFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn JournalFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

impl JournalFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, position)
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// Writes all of `bytes` at `position`, in as many writes as it takes.
pub(crate) fn write_all_at(file: &dyn JournalFile, mut bytes: &[u8], mut position: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                position += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `buffer` from `position`, in as many reads as it takes.
pub(crate) fn read_exact_at(file: &dyn JournalFile, mut buffer: &mut [u8], mut position: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, position) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                buffer = &mut buffer[read..];
                position += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns whether a write failed for want of room, which may come back, rather than for a fault.
pub(crate) fn is_for_want_of_room(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull, WriteZero};
    matches!(error.kind(), StorageFull | QuotaExceeded | WriteZero)
}
