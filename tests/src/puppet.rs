//! Both ends of connections moved step by step: what a test tells two processes (`mesh-peer puppet`) to do with
//! their sockets, and what they saw of it, line by line, so that two plays can be compared.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::peer::Place;
use crate::process::{self, Process};

/// The longest step, on a busy machine.
const STEP: Duration = Duration::from_secs(60);

/// A process that does what it is told.
pub struct Puppet(Process);

impl Puppet {
    pub fn start(place: &impl Place) -> Result<Puppet> {
        let mut command = Command::new(process::binary("mesh-peer")?);
        command.arg("puppet");
        Ok(Puppet(place.start(command)?))
    }

    /// One step and what was seen of it.
    pub fn ask(&mut self, step: &str) -> Result<String> {
        self.begin(step)?;
        self.answer()
    }

    /// Begins a step; [`Self::answer`] waits for its end.
    pub fn begin(&mut self, step: &str) -> Result<()> {
        self.0.send(step)
    }

    pub fn answer(&mut self) -> Result<String> {
        self.0.line_within(STEP)
    }
}

/// What one side did, and what it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub step: String,
    pub answer: String,
}

/// A client and a server, and what happened so far.
pub struct Scene {
    client: Puppet,
    server: Puppet,
    from: IpAddr,
    to: SocketAddr,
    pub lines: Vec<Line>,
}

impl Scene {
    /// The server listens at `to`; `from` is the client's address.
    pub fn new(client: &impl Place, from: IpAddr, server: &impl Place, to: SocketAddr) -> Result<Scene> {
        let (client, mut server) = (Puppet::start(client)?, Puppet::start(server)?);
        let answer = server.ask(&format!("listen [::]:{}", to.port()))?;
        ensure!(answer == "listening", "the server does not listen: {answer}");
        Ok(Scene { client, server, from, to, lines: Vec::new() })
    }

    /// `TO` stands for the server's address.
    pub fn client(&mut self, step: &str) -> Result<()> {
        let answer = self.client.ask(&step.replace("TO", &self.to.to_string()))?;
        self.note("client", step, answer);
        Ok(())
    }

    pub fn server(&mut self, step: &str) -> Result<()> {
        let answer = self.server.ask(step)?;
        self.note("server", step, answer);
        Ok(())
    }

    /// Both at once.
    pub fn both(&mut self, client: &str, server: &str) -> Result<()> {
        self.client.begin(&client.replace("TO", &self.to.to_string()))?;
        self.server.begin(server)?;
        let answers = (self.client.answer()?, self.server.answer()?);
        self.note("client", client, answers.0);
        self.note("server", server, answers.1);
        Ok(())
    }

    /// A new connection of this name at both ends.
    pub fn open(&mut self, name: &str) -> Result<()> {
        self.both(&format!("connect {name} TO"), &format!("accept {name}"))
    }

    /// The same, from a port of the client's choice.
    pub fn open_from(&mut self, name: &str, port: u16) -> Result<()> {
        let from = SocketAddr::new(self.from, port);
        self.both(&format!("connect {name} TO {from}"), &format!("accept {name}"))
    }

    fn note(&mut self, who: &str, step: &str, answer: String) {
        self.lines.push(Line { step: format!("{who}: {step}"), answer });
    }
}
