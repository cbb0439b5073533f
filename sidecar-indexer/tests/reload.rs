//! The running program follows its configuration file, mounted as Kubernetes mounts it, and names in DNS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A mounted ConfigMap: the file is a link into a link that is swapped.
struct Mount(PathBuf);

impl Mount {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        symlink("..data/indexer.yaml", folder.join("indexer.yaml")).unwrap();
        Self(folder)
    }

    fn swap(&self, version: u32, text: &str) {
        let folder = self.0.join(format!("..v{version}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("indexer.yaml"), text).unwrap();
        symlink(folder.file_name().unwrap(), self.0.join("..data_tmp")).unwrap();
        fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
    }
}

fn config(more: &str, endpoints: &str) -> String {
    let tokenizer = format!("{}/../tests/fixtures/tokenizer", env!("CARGO_MANIFEST_DIR"));
    format!(
        "listen: 127.0.0.1:0\n{more}\nmodels: [{{name: tiny, tokenizer: '{tokenizer}'}}]\nendpoints: [{endpoints}]\n"
    )
}

struct Indexer {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
}

impl Indexer {
    fn start(mount: &Mount) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_warmpath-indexer")), mount)
    }

    fn start_by(mut command: Command, mount: &Mount) -> Self {
        let mut child =
            command.args(["run", "--config"]).arg(mount.0.join("indexer.yaml")).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, into) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                *into.lock().unwrap() += &(line + "\n");
            }
        });
        let mut this = Self { child, address: String::new(), log };
        this.says("listening");
        let log = this.log();
        let line = log.lines().find(|line| line.contains("listening")).unwrap();
        let at = line.find("127.0.0.1:").unwrap();
        this.address = line[at..].chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
        this
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }

    /// Waits for what a metric does not wait for: the log is read by a thread, and written by several.
    fn says(&self, text: &str) {
        self.until(text, |this| this.log().contains(text));
    }

    fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let since = Instant::now();
        while !so(self) {
            assert!(since.elapsed() < PATIENCE, "never: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until exactly these endpoints are followed, by the ports of 127.0.0.1.
    fn follows(&self, ports: &[u16]) {
        self.until(&format!("{ports:?} are followed"), |this| {
            let page = this.metrics();
            page.contains(&format!("warmpath_endpoints {}\n", ports.len()))
                && ports.iter().all(|port| page.contains(&format!("endpoint_up{{endpoint=\"127.0.0.1:{port}\"}}")))
        });
    }
}

impl Drop for Indexer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn at(port: u16) -> String {
    format!("{{address: '127.0.0.1:{port}', model: tiny, metrics: none}}")
}

#[test]
fn a_swapped_config_map_is_taken_over_and_a_broken_one_is_not() {
    let mount = Mount::new("reload");
    mount.swap(1, &config("", &at(1)));
    let indexer = Indexer::start(&mount);
    indexer.follows(&[1]);
    let swapped = Instant::now();
    mount.swap(2, &config("", &[at(1), at(2)].join(", ")));
    indexer.follows(&[1, 2]);
    let took = swapped.elapsed();
    assert!(took >= Duration::from_millis(900), "a change counts once it stays the same: {took:?}");

    mount.swap(3, &config("", &format!("{}, {{address: here, model: tiny}}", at(3))));
    indexer.says("the changed configuration is not usable");
    assert!(indexer.log().contains("endpoints[1]"), "{}", indexer.log());
    indexer.until("the metric says so", |this| this.metrics().contains("warmpath_config_last_reload_successful 0\n"));
    indexer.follows(&[1, 2]);

    // Told to, it does not wait.
    mount.swap(4, &config("stride_bytes: 64", &at(2)).replace("127.0.0.1:0", "127.0.0.1:9"));
    indexer.signal("-HUP");
    indexer.follows(&[2]);
    indexer.says("listen: another address takes effect when the indexer is started anew");
    indexer.says("the index is built anew");
    indexer.until("the metrics say so", |this| {
        let page = this.metrics();
        page.contains("warmpath_config_last_reload_successful 1\n")
            && page.contains("warmpath_config_reloads_total{result=\"failed\"} 1\n")
    });
}

#[test]
fn a_file_or_a_model_that_was_not_there_is_taken_over_when_it_comes() {
    let mount = Mount::new("later");
    let first = config("", &at(1));
    mount.swap(1, &first);
    let indexer = Indexer::start(&mount);
    indexer.follows(&[1]);
    let successful = |this: &Indexer| this.metrics().contains("warmpath_config_last_reload_successful 1\n");
    // Swapped away whole, as when the ConfigMap is gone.
    fs::rename(mount.0.join("..data"), mount.0.join("away")).unwrap();
    indexer.says("cannot read");
    indexer.until("the metric says so", |this| !successful(this));
    fs::rename(mount.0.join("away"), mount.0.join("..data")).unwrap();
    indexer.until("it is content", successful);

    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizer");
    let folder = mount.0.join("tokenizer");
    let moved = |ports: &str| config("", ports).replace(source.to_str().unwrap(), folder.to_str().unwrap());
    let (one, two) = (moved(&at(1)), moved(&[at(1), at(2)].join(", ")));
    assert!(one != first && one.contains(folder.to_str().unwrap()), "{one}");
    mount.swap(2, &two);
    indexer.says("is not there");
    let copy = |folder: &Path| {
        fs::create_dir_all(folder).unwrap();
        for entry in fs::read_dir(&source).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    };
    // All at once: half a model might be usable.
    copy(&mount.0.join("copy"));
    fs::rename(mount.0.join("copy"), &folder).unwrap();
    indexer.follows(&[1, 2]);
    assert_eq!(indexer.log().matches("is not there").count(), 1, "{}", indexer.log());

    // SIGHUP reads anew a model whose files are broken now, with the configuration as it was.
    fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    indexer.signal("-HUP");
    indexer.until("it complains", |this| !successful(this));
    indexer.says("tokenizer.json is not usable");
    copy(&folder);
    indexer.signal("-HUP");
    indexer.until("it is content", successful);
}

#[test]
fn a_request_that_never_ends_does_not_keep_the_indexer() {
    let mount = Mount::new("stop");
    mount.swap(1, &config("", &at(1)));
    let mut indexer = Indexer::start(&mount);
    let mut half = TcpStream::connect(&indexer.address).unwrap();
    half.write_all(b"GET /metrics HTTP/1.1\r\nhost").unwrap();
    // Taken in by then.
    indexer.metrics();
    indexer.signal("-TERM");
    let since = Instant::now();
    while indexer.child.try_wait().unwrap().is_none() {
        assert!(since.elapsed() < PATIENCE, "it does not end\n{}", indexer.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!indexer.log().contains('\u{1b}'), "colours in a log that is not a terminal: {}", indexer.log());
}

#[test]
fn a_names_addresses_are_followed() {
    let mount = Mount::new("dns");
    mount.swap(1, &config("dns_interval_ms: 200", "{dns: 'localhost:7', model: tiny, metrics: none}"));
    let indexer = Indexer::start(&mount);
    // Where localhost is ::1 too, that is another endpoint.
    indexer.until("127.0.0.1 is found", |this| this.metrics().contains("endpoint_up{endpoint=\"127.0.0.1:7\"}"));
    // An entry that moves from the name to its address is not named twice.
    mount.swap(2, &config("dns_interval_ms: 200", &at(7)));
    indexer.says("is taken over");
    indexer.follows(&[7]);
    assert!(!indexer.log().contains("named twice"), "{}", indexer.log());
    // A label that is too long is refused without a resolver, which might take its time.
    let name = format!("{}.invalid", "x".repeat(64));
    mount.swap(3, &config("dns_interval_ms: 200", &format!("{{dns: '{name}:7', model: tiny, metrics: none}}")));
    indexer.until("they are gone", |this| this.metrics().contains("warmpath_endpoints 0\n"));
    indexer.says("cannot look the name up");
}

/// The program under these limits on file descriptors.
#[cfg(target_os = "linux")]
fn allowed_files(soft: u32, hard: u32) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -S -n {soft} && ulimit -H -n {hard} && exec \"$0\" \"$@\"")]);
    command.arg(env!("CARGO_BIN_EXE_warmpath-indexer"));
    command
}

/// Else more than some 100 engines are followed badly where only the soft limit is low, as it mostly is.
#[cfg(target_os = "linux")]
#[test]
fn as_many_files_are_opened_as_are_allowed_and_few_are_complained_of() {
    let mount = Mount::new("descriptors");
    mount.swap(1, &config("", &at(1)));
    let indexer = Indexer::start_by(allowed_files(100, 300), &mount);
    indexer.says("few file descriptors are allowed: enough for about 37 engines");
    let limits = fs::read_to_string(format!("/proc/{}/limits", indexer.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("300"), "{files}");
}

#[cfg(target_os = "linux")]
#[test]
fn who_cannot_be_asked_for_want_of_file_descriptors_is_not_down() {
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = engine.local_addr().unwrap().port();
    // A connection for each question, so that each takes a descriptor.
    std::thread::spawn(move || {
        for mut call in engine.incoming().flatten() {
            let _ = call.read(&mut [0; 4096]);
            let _ = call.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let mount = Mount::new("short");
    mount.swap(1, &config("scrape_interval_ms: 100", &format!("{{address: '127.0.0.1:{port}', model: tiny}}")));
    let indexer = Indexer::start_by(allowed_files(64, 64), &mount);
    let up = format!("endpoint_up{{endpoint=\"127.0.0.1:{port}\"}} 1\n");
    indexer.until("it is up", |this| this.metrics().contains(&up));
    let mut asked = TcpStream::connect(&indexer.address).unwrap();
    let mut page = || {
        asked.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let (mut page, mut chunk) = (String::new(), [0; 4096]);
        while !page.contains("# EOF") {
            let read = asked.read(&mut chunk).unwrap();
            assert!(read > 0, "hung up after {page:?}");
            page += std::str::from_utf8(&chunk[..read]).unwrap();
        }
        page
    };
    page();
    let _all: Vec<_> = (0..100).map(|_| TcpStream::connect(&indexer.address).unwrap()).collect();
    indexer.says("short of file descriptors");
    // Three failures would be enough.
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(100));
        assert!(page().contains(&up), "{}", page());
    }
}
