//! How the processes of a job find each other: each listens at its own address and dials those before it.
//!
//! Nothing is opened or taken over before all are there: a job that lacks a process disturbs nobody. Once they are, nobody
//! listens any more.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use crossbeam_channel::{Sender, unbounded};

use super::Shape;
use super::handshake::{self, HandshakeError, Hello, Incarnation, Purpose};
use super::socket::Socket;

/// How long to wait before a process that did not answer is dialed again.
const REDIAL: Duration = Duration::from_millis(200);
/// How long to wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How often a listener looks whether somebody dials.
const LOOK: Duration = Duration::from_millis(5);
/// Dialers that are heard at once, so that strangers take neither memory nor threads: one more, and who has been heard for longest
/// without a proof is turned away.
const HEARD_MAX: usize = 64;

/// A process's place among the others.
#[derive(Clone)]
pub struct Membership {
    /// How the workers are spread, and which process this is.
    pub shape: Shape,
    /// Where each process listens, `host:port`.
    pub addresses: Vec<String>,
    /// What all of them know, and nobody else.
    pub secret: String,
    /// How long to wait for the others.
    pub start_timeout: Duration,
    /// A digest of the build and the topology: all run the same.
    pub runs: [u8; 32],
}

/// The connections of a process to the others; none for a job of one process.
#[derive(Default)]
pub struct Joined {
    /// Timely's, by process; none to itself.
    pub data: Vec<Option<Socket>>,
    /// To every member by its number, or to the coordinator.
    pub control: BTreeMap<usize, TcpStream>,
}

/// Connects this process with all others.
///
/// # Errors
/// If they are not all there in time, or some run something else.
pub fn join(membership: &Membership) -> anyhow::Result<Joined> {
    let Membership { shape, addresses, .. } = membership;
    let own = &addresses[shape.process];
    let listener = TcpListener::bind(own)
        .with_context(|| format!("process {} can't listen at {own} (engine.cluster.hosts)", shape.process))?;
    listener.set_nonblocking(true)?;
    let joining = Joining { membership, deadline: Instant::now() + membership.start_timeout };
    let (mut control, mut data) = (BTreeMap::new(), BTreeMap::new());
    let mut incarnation = [0; 16];
    if shape.is_coordinator() {
        incarnation = handshake::fresh()?;
    } else {
        let (stream, told) = joining.dial(0, Purpose::Control, &incarnation)?;
        incarnation = told;
        control.insert(0, stream);
    }
    for process in 0..shape.process {
        data.insert(process, joining.dial(process, Purpose::Data, &incarnation)?.0);
    }
    joining.accept(&listener, &incarnation, &mut control, &mut data)?;
    let socket = |process| data.remove(&process).map(|stream| Socket::new(stream, process)).transpose();
    let data = (0..shape.processes).map(socket).collect::<Result<_, _>>();
    Ok(Joined { data: data.context("set up the connections to the other processes")?, control })
}

struct Joining<'a> {
    membership: &'a Membership,
    deadline: Instant,
}

impl Joining<'_> {
    /// Dials a process until it answers.
    fn dial(
        &self,
        process: usize,
        purpose: Purpose,
        incarnation: &Incarnation,
    ) -> anyhow::Result<(TcpStream, Incarnation)> {
        let Membership { shape, addresses, secret, runs, start_timeout } = self.membership;
        let hello = Hello {
            purpose,
            process: shape.process as u16,
            processes: shape.processes as u16,
            workers: shape.workers as u16,
            runs: *runs,
            incarnation: *incarnation,
        };
        let address = &addresses[process];
        // Why somebody who answers is not the one is worth more than that nobody answers any more.
        let mut answered = None;
        loop {
            let tried = connect(address).map_err(HandshakeError::from).and_then(|stream| {
                let incarnation = handshake::dial(&stream, secret, &hello)?;
                stream.set_nodelay(true)?;
                Ok((stream, incarnation))
            });
            match tried {
                Ok(connected) => return Ok(connected),
                Err(HandshakeError::Refused(why)) => bail!("process {process} at {address} refuses this one: {why}"),
                Err(error) => {
                    tracing::debug!(process, address, %error, "dialing again");
                    if !matches!(error, HandshakeError::Io(_)) {
                        answered = Some(error.to_string());
                    }
                    if Instant::now() > self.deadline {
                        let why = answered.unwrap_or_else(|| error.to_string());
                        bail!("process {process} at {address} is not there after {} s: {why}", start_timeout.as_secs());
                    }
                }
            }
            std::thread::sleep(REDIAL);
        }
    }

    /// Lets in the processes that dial this one.
    fn accept(
        &self,
        listener: &TcpListener,
        incarnation: &Incarnation,
        control: &mut BTreeMap<usize, TcpStream>,
        data: &mut BTreeMap<usize, TcpStream>,
    ) -> anyhow::Result<()> {
        let shape = self.membership.shape;
        let mut missing: Vec<(usize, Purpose)> = (shape.process + 1..shape.processes)
            .flat_map(|process| {
                let control = shape.is_coordinator().then_some((process, Purpose::Control));
                control.into_iter().chain([(process, Purpose::Data)])
            })
            .collect();
        let (let_in, arrived) = unbounded();
        std::thread::scope(|scope| {
            let mut door = Door::default();
            while !missing.is_empty() {
                match listener.accept() {
                    Ok((stream, from)) => {
                        let dialer = door.open(stream, from.to_string());
                        let let_in = let_in.clone();
                        scope.spawn(move || self.hear(&dialer, incarnation, &let_in));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(LOOK),
                    Err(error) => tracing::warn!(%error, "a connection to this process did not come about"),
                }
                for (hello, stream) in arrived.try_iter() {
                    let Hello { process, purpose, .. } = hello;
                    let process = usize::from(process);
                    ensure!(
                        missing.contains(&(process, purpose)),
                        "process {process} has joined twice: it was started again, or two processes have its number"
                    );
                    missing.retain(|wanted| *wanted != (process, purpose));
                    let into = if purpose == Purpose::Control { &mut *control } else { &mut *data };
                    into.insert(process, stream);
                }
                if let Some(process) = control.iter().find_map(|(process, stream)| is_gone(stream).then_some(*process))
                {
                    bail!("process {process} went away while the others were waited for");
                }
                if Instant::now() > self.deadline {
                    let mut missing: Vec<String> = missing.iter().map(|(process, _)| process.to_string()).collect();
                    missing.dedup();
                    let waited = self.membership.start_timeout.as_secs();
                    return Err(anyhow!("after {waited} s these processes are not there: {}", missing.join(", ")));
                }
            }
            Ok(())
        })
    }

    /// Hears one dialer out.
    fn hear(&self, dialer: &Dialer, incarnation: &Incarnation, let_in: &Sender<(Hello, TcpStream)>) {
        let judge = |hello: &Hello| {
            dialer.prove();
            self.judge(hello, incarnation)
        };
        let answered = dialer.stream.set_nonblocking(false).map_err(HandshakeError::from).and_then(|()| {
            let hello = handshake::answer(&dialer.stream, &self.membership.secret, incarnation, judge)?;
            dialer.stream.set_nodelay(true)?;
            Ok((hello, dialer.stream.try_clone()?))
        });
        match answered {
            // Nobody waits any more: the gathering has failed, and says so.
            Ok(joined) => drop(let_in.send(joined)),
            Err(error) => tracing::warn!(from = dialer.from, %error, "turned away a connection to this process"),
        }
    }

    /// Why a process that knows the secret can't take part.
    fn judge(&self, hello: &Hello, incarnation: &Incarnation) -> Result<(), String> {
        let Membership { shape, runs, .. } = self.membership;
        let (processes, workers) = (usize::from(hello.processes), usize::from(hello.workers));
        if (processes, workers) != (shape.processes, shape.workers) {
            let (ours, threads) = (shape.processes, shape.workers);
            return Err(format!(
                "it expects {processes} processes of {workers} workers, this one {ours} of {threads}: give all the same"
            ));
        }
        if hello.runs != *runs {
            return Err("it runs another build or another topology: give all the same".into());
        }
        let process = usize::from(hello.process);
        if process <= shape.process || process >= shape.processes {
            return Err(format!("process {process} does not dial process {}", shape.process));
        }
        match hello.purpose {
            Purpose::Control if !shape.is_coordinator() => Err("this one is not the coordinator".into()),
            Purpose::Data if hello.incarnation != *incarnation => Err("it is of another start".into()),
            _ => Ok(()),
        }
    }
}

/// Who is being heard, the oldest first. When nobody waits for them any more, those that have not proven that they know the secret
/// are turned away: a gathering that is complete, or has failed, does not wait for strangers.
#[derive(Default)]
struct Door {
    heard: VecDeque<Weak<Dialer>>,
}

impl Door {
    /// One more is heard.
    fn open(&mut self, stream: TcpStream, from: String) -> Arc<Dialer> {
        self.heard.retain(|dialer| dialer.strong_count() > 0);
        while self.heard.len() >= HEARD_MAX {
            self.heard.pop_front().and_then(|oldest| oldest.upgrade()).iter().for_each(|oldest| oldest.turn_away());
        }
        let dialer = Arc::new(Dialer { stream, from, proven: Mutex::new(false) });
        self.heard.push_back(Arc::downgrade(&dialer));
        dialer
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.heard.iter().filter_map(Weak::upgrade).for_each(|dialer| dialer.turn_away());
    }
}

/// Somebody at the door.
struct Dialer {
    stream: TcpStream,
    from: String,
    proven: Mutex<bool>,
}

impl Dialer {
    /// It knows the secret. If it was turned away meanwhile, nothing that it is told will reach it, and it dials again.
    fn prove(&self) {
        *self.proven.lock().expect("no thread panics with the lock") = true;
    }

    /// Ends the connection, unless it is one of ours.
    fn turn_away(&self) {
        let proven = self.proven.lock().expect("no thread panics with the lock");
        if !*proven {
            // Whoever has gone already has been turned away.
            let _gone = self.stream.shutdown(Shutdown::Both);
        }
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut tried = Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for address in address.to_socket_addrs()? {
        tried = TcpStream::connect_timeout(&address, CONNECT_MAX);
        if tried.is_ok() {
            break;
        }
    }
    tried
}

/// Whether the other side of a connection that says nothing yet has closed it.
fn is_gone(stream: &TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    let gone = match stream.peek(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    };
    gone || stream.set_nonblocking(false).is_err()
}
