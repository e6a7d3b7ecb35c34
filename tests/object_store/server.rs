//! The S3 server of the local stack, as a process of its own.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Server {
    pub endpoint: String,
    address: String,
    process: Child,
    root: PathBuf,
}

impl Server {
    pub async fn start(access_key: &str, secret_key: &str, bucket: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let root = std::env::temp_dir().join(format!("feed-worker-s3-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let process = Command::new(program())
            .args(["--port", &port.to_string(), "--bucket", bucket, "--root"])
            .arg(&root)
            .env("S3_ACCESS_KEY", access_key)
            .env("S3_SECRET_KEY", secret_key)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Server { endpoint: format!("http://{address}"), address, process, root };
        for _ in 0..200 {
            if TcpStream::connect(&server.address).await.is_ok() {
                return server;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("the S3 server does not listen on {}", server.address);
    }

    /// Sets a fault switch, as the server's documentation says.
    pub async fn fault(&self, query: &str) {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let request = format!(
            "POST /_fault?{query} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// `cargo test` builds it beside the tests; `cargo test --test object_store` alone does not.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples/s3");
    assert!(program.exists(), "{} is missing: cargo build --example s3", program.display());
    program
}
