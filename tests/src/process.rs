//! Processes of the harness: started in a namespace, read line by line with a deadline, and ended when
//! dropped.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// How long an event that must come may take on a busy machine; `MESH_TESTS_DEADLINE_S` is for machines
/// that are slow throughout, as an emulated one is.
pub fn deadline() -> Duration {
    let seconds = std::env::var("MESH_TESTS_DEADLINE_S").ok().and_then(|v| v.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// Lines of standard error that are kept for the report of a failure.
const KEPT_LINES: usize = 40;

/// The path of a program of this workspace, built beside the running one.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the running program")?;
    let candidates = own.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    for candidate in candidates {
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("{name} is not beside {}: build it with `cargo build -p mesh-tests -p mesh-node`", own.display())
}

/// Runs a tool to its end; its standard error is in the error.
pub fn run(program: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args);
    output_of(&mut command, None).map(drop)
}

/// Runs a tool to its end with `input` on its standard input.
pub fn run_with_input(mut command: Command, input: &str) -> Result<()> {
    output_of(&mut command, Some(input)).map(drop)
}

/// Runs a tool to its end and returns its standard output.
pub fn output_of(command: &mut Command, input: Option<&str>) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).with_context(|| format!("writing to {name}"))?;
    }
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    if !status.success() {
        let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        let input = input.map(|i| format!("\ninput:\n{i}")).unwrap_or_default();
        bail!("{name} {}: {status}: {}{input}", args.join(" "), String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// A running process. Dropping it kills it and waits for its end.
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Arc<Mutex<Errors>>,
    /// Keeps the namespace and control group of the process as long as the process.
    _home: Option<Box<dyn std::any::Any + Send>>,
}

/// What a process wrote to standard error.
#[derive(Default)]
struct Errors {
    last: VecDeque<String>,
    /// Where all of it goes.
    file: Option<File>,
}

impl Errors {
    fn add(&mut self, line: String) {
        if let Some(file) = &mut self.file {
            // The report of a failure is worth less than the run.
            writeln!(file, "{line}").ok();
        }
        if self.last.len() == KEPT_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

impl Process {
    /// Starts `command` with its three streams connected to this value.
    pub fn spawn(mut command: Command, home: Option<Box<dyn std::any::Any + Send>>) -> Result<Process> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let stderr = child.stderr.take().context("standard error is piped")?;
        let (sender, lines) = channel();
        forward(stdout, move |line| sender.send(line).is_ok());
        let errors = Arc::new(Mutex::new(Errors::default()));
        let kept = errors.clone();
        let echo = std::env::var_os("MESH_TESTS_VERBOSE").is_some();
        let label = name.clone();
        forward(stderr, move |line| {
            if echo {
                eprintln!("[{label}] {line}");
            }
            if let Ok(mut kept) = kept.lock() {
                kept.add(line);
            }
            true
        });
        let stdin = child.stdin.take();
        Ok(Process { name, child, stdin, lines, errors, _home: home })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line of standard output, or an error after [`deadline`] or at the end of the process.
    pub fn line(&mut self) -> Result<String> {
        self.line_within(deadline())
    }

    pub fn line_within(&mut self, limit: Duration) -> Result<String> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{}: no line within {limit:?}; standard error: {}", self.name, self.errors())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                bail!("{} ended, {status}; standard error: {}", self.name, self.errors())
            }
        }
    }

    /// A line of standard output if one is there already.
    pub fn try_line(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Writes a line to standard input.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input is closed")?;
        stdin.write_all(format!("{line}\n").as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// Closes standard input: for programs that end then.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub fn signal(&self, signal: i32) -> Result<()> {
        crate::sys::signal(self.id(), signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Kills the process (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + limit;
        // The end of standard output is the event; `wait` then returns at once, unless the process
        // handed its output to a child.
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(anyhow!("{} does not end; standard error: {}", self.name, self.errors()));
            }
            match self.lines.recv_timeout(left) {
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(self.child.wait()?),
            }
        }
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The last lines of standard error.
    pub fn errors(&self) -> String {
        let kept = self.errors.lock().map(|k| k.last.iter().cloned().collect::<Vec<_>>()).unwrap_or_default();
        kept.join("\n")
    }

    /// Waits until the last lines of standard error contain `text`.
    pub fn wait_error(&self, text: &str) -> Result<()> {
        let until = Instant::now() + deadline();
        while !self.errors().contains(text) {
            if Instant::now() > until {
                bail!("{} does not say {text:?}; standard error: {}", self.name, self.errors());
            }
            std::thread::sleep(Duration::from_millis(20)); // the period of the poll
        }
        Ok(())
    }

    /// Writes standard error to a file too, which is made anew: the lines that are still kept, and all to come.
    pub fn log_to(&self, path: &Path) -> Result<()> {
        let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        if let Ok(mut errors) = self.errors.lock() {
            errors.last.iter().try_for_each(|line| writeln!(file, "{line}"))?;
            errors.file = Some(file);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn forward(stream: impl Read + Send + 'static, mut take: impl FnMut(String) -> bool + Send + 'static) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            if !take(line) {
                return;
            }
        }
    });
}
