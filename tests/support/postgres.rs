//! A Postgres for one test.

use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection};

/// A Postgres of one's own, on a socket in a private folder.
pub struct Postgres {
    programs: PathBuf,
    pub folder: PathBuf,
}

impl Postgres {
    pub fn start(name: &str) -> Self {
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("Postgres is not installed");
        let newest = versions
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok())
            .max()
            .expect("Postgres is not installed");
        let programs = PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"));
        let folder = std::env::temp_dir().join(format!("feed-worker-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&folder));
        }
        let server = Postgres { programs, folder };
        let data = server.data();
        server.run("initdb", &["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "-D", &data]);
        let options = format!("-c listen_addresses='' -c fsync=off -k {}", server.folder.display());
        let log = server.folder.join("log");
        let log = log.to_str().unwrap();
        server.run("pg_ctl", &["-D", &data, "-l", log, "-o", &options, "-w", "start"]);
        server
    }

    fn data(&self) -> String {
        self.folder.join("data").to_str().unwrap().to_owned()
    }

    /// Postgres refuses to be run by root.
    fn run(&self, program: &str, arguments: &[&str]) {
        let program = self.programs.join(program);
        if is_root() {
            run(Command::new("runuser").args(["-u", "postgres", "--"]).arg(program).args(arguments));
        } else {
            run(Command::new(program).args(arguments));
        }
    }

    #[allow(dead_code)] // Not every test that has a server asks for a bare connection.
    pub async fn connect(&self) -> PgConnection {
        let options = PgConnectOptions::new_without_pgpass().socket(&self.folder);
        options.username("postgres").database("postgres").connect().await.unwrap()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "stop"]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn run(command: &mut Command) {
    // Files, not pipes: the server outlives pg_ctl and would keep a pipe open.
    let status = command.current_dir(Path::new("/")).stdout(std::process::Stdio::null()).status();
    assert!(status.unwrap().success(), "{command:?}");
}
