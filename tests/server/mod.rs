//! `weft serve` as a child process, and a plain client of it: one request a connection, over a TCP stream.
#![allow(dead_code)] // each test binary uses a part

pub mod damage;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// A server, which is killed with the test.
pub struct Server {
    child: Child,
    pub address: String,
    _out: BufReader<ChildStdout>,
}

/// A reply.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server of the embedded base on a free port.
    pub fn start(options: &[&str]) -> Self {
        let mut command = Command::new(WEFT);
        command.args(["serve", "--model", "tiny-base", "--port", "0", "--threads", "2", "--quiet", "--device", "cpu"]);
        command.args(options).env_remove("WEFT_API_KEY");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("weft starts");
        let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("it is read");
        let (_, address) = line.trim_end().rsplit_once("http://").unwrap_or_else(|| panic!("it says where: {line:?}"));
        Self { child, address: address.to_owned(), _out: out }
    }

    /// Opens a connection and sends bytes.
    pub fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a time is set");
        // A server that refuses early may have closed its side.
        let _ = stream.write_all(bytes);
        stream
    }

    /// Sends bytes, says that there are no more, and reads the reply; `None` if there is none.
    pub fn raw(&self, bytes: &[u8]) -> Option<Reply> {
        let mut stream = self.send(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        read(&mut stream)
    }

    /// The bytes of a request.
    pub fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n",
            self.address
        );
        [head.as_bytes(), body].concat()
    }

    pub fn get(&self, path: &str) -> Reply {
        read(&mut self.send(&self.request("GET", path, "", b""))).expect("there is a reply")
    }

    /// Posts JSON and leaves the reply to be read.
    pub fn ask(&self, path: &str, body: &Value) -> TcpStream {
        let headers = "Content-Type: application/json\r\n";
        self.send(&self.request("POST", path, headers, body.to_string().as_bytes()))
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        read(&mut self.ask(path, body)).expect("there is a reply")
    }

    /// A chat's answer.
    pub fn chat(&self, body: &Value) -> Value {
        self.post("/v1/chat/completions", body).value()
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill starts");
        assert!(status.success(), "{signal} is sent");
    }

    /// The largest memory that the server has had, in MiB; `None` where there is no /proc.
    pub fn most_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(most.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
    }

    pub fn ends(&mut self) -> ExitStatus {
        self.child.wait().expect("it ends")
    }
}

/// Reads a reply to the end of its connection.
pub fn read(stream: &mut TcpStream) -> Option<Reply> {
    let mut bytes = vec![];
    let mut part = [0; 1 << 14];
    // A connection that is reset after the reply has still told it.
    while let Ok(count @ 1..) = stream.read(&mut part) {
        bytes.extend_from_slice(&part[..count]);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (headers, body) = text.split_once("\r\n\r\n")?;
    let status = headers.split(' ').nth(1)?.parse().ok()?;
    let headers = headers.to_ascii_lowercase();
    let length = headers.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let body = match (headers.contains("transfer-encoding: chunked"), length) {
        (true, _) => dechunked(body),
        // What is left of a damaged request may have a reply of its own.
        (false, Some(length)) => body.get(..length)?.to_owned(),
        (false, None) => body.to_owned(),
    };
    Some(Reply { status, headers, body })
}

fn dechunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk has a size");
        body.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    body
}

impl Reply {
    #[track_caller]
    pub fn value(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).expect("JSON")
    }

    /// The sentence of an error.
    #[track_caller]
    pub fn error(&self) -> String {
        let value: Value = serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body));
        let message = value["error"]["message"].as_str().expect("an error has a message").to_owned();
        assert!(!message.trim().is_empty() && !message.contains('\n'), "one sentence: {message:?}");
        message
    }

    /// The data of a stream's events, without the last one.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let data: Vec<&str> = self
            .body
            .split("\n\n")
            .filter(|e| !e.is_empty())
            .map(|e| e.strip_prefix("data: ").expect("data"))
            .collect();
        let (last, data) = data.split_last().expect("there are events");
        assert_eq!(*last, "[DONE]");
        data.iter().map(|data| serde_json::from_str(data).expect("JSON")).collect()
    }
}

/// A question.
pub fn question(content: &str, more: Value) -> Value {
    let mut body =
        json!({ "model": "tiny-base", "messages": [{ "role": "user", "content": content }], "max_tokens": 16 });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// The text of a choice.
#[track_caller]
pub fn text(reply: &Value, choice: usize) -> String {
    let choice = &reply["choices"][choice];
    let text = choice["message"]["content"].as_str().or_else(|| choice["text"].as_str());
    text.unwrap_or_else(|| panic!("there is a text: {reply}")).to_owned()
}

/// What `weft generate` prints.
pub fn generated(options: &[&str]) -> String {
    let output = weft(&[&["generate", "--model", "tiny-base", "--threads", "2", "--device", "cpu"], options].concat());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.strip_suffix('\n').expect("it ends with a line break").to_owned()
}

pub fn weft(arguments: &[&str]) -> Output {
    let output = Command::new(WEFT).args(arguments).stdin(Stdio::null()).output().expect("weft starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
