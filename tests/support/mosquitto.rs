//! A mosquitto of the test's own, on a free port of the loopback.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// A running broker; it ends with the value.
pub(crate) struct Mosquitto {
    child: Child,
    port: u16,
    /// Holds the configuration, and whatever the test needs beside it.
    dir: TempDir,
}

impl Mosquitto {
    /// Starts a broker that keeps whatever it is sent; `listener` are further lines about its listener.
    pub(crate) fn start(dir: TempDir, listener: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "listener {port} 127.0.0.1\n{listener}\nuser root\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n"
        );
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let child = spawn(&dir);
        let mut broker = Self { child, port, dir };
        broker.wait_until_it_listens();
        broker
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Kills it and starts it again: sessions and messages are gone.
    pub(crate) fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(&self.dir);
        self.wait_until_it_listens();
    }

    fn wait_until_it_listens(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("mosquitto ended with {status}");
            }
            assert!(Instant::now() < deadline, "mosquitto does not listen");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // It may have ended already; the process table is cleaned either way.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(dir: &TempDir) -> Child {
    let program =
        if std::path::Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" };
    Command::new(program)
        .arg("-c")
        .arg(dir.path().join("mosquitto.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto is installed")
}
