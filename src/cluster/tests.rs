//! Processes that find each other on loopback, and what strangers and half a job do to that.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;

use super::handshake::{self, HandshakeError, Hello, Purpose};
use super::link::Link;
use super::message::{Bytes, ToMember};
use super::*;

const SECRET: &str = "sixteen characters at least";

fn addresses(count: usize) -> Vec<String> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

fn membership(process: usize, addresses: &[String]) -> Membership {
    Membership {
        shape: Shape { processes: addresses.len(), process, workers: 2 },
        addresses: addresses.to_vec(),
        secret: SECRET.into(),
        start_timeout: Duration::from_secs(30),
        runs: [7; 32],
    }
}

/// All of them join at once; what became of each.
fn join_all(memberships: Vec<Membership>) -> Vec<anyhow::Result<Joined>> {
    thread::scope(|scope| {
        let joining: Vec<_> = memberships.iter().map(|membership| scope.spawn(|| join(membership))).collect();
        joining.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn error(joined: anyhow::Result<Joined>) -> String {
    joined.err().map(|error| format!("{error:#}")).unwrap_or_default()
}

/// Both ends of a connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn hello() -> Hello {
    Hello { purpose: Purpose::Control, process: 1, processes: 2, workers: 2, runs: [7; 32], incarnation: [0; 16] }
}

#[test]
fn workers_are_numbered_through_all_processes() {
    let shape = Shape { processes: 3, process: 1, workers: 2 };
    assert_eq!((shape.total(), shape.local(), shape.is_coordinator()), (6, 2..4, false));
    assert_eq!([2, 3, 4, 5].map(|worker| shape.at_coordinator(worker)), [0, 1, 0, 1]);
}

#[test]
fn processes_join_whatever_strangers_do() {
    let addresses = addresses(3);
    let strangers = addresses.clone();
    // They knock at each door before and while the processes come: one says nothing, one leaves, one talks nonsense, one
    // begins well and stops.
    let knocking = thread::spawn(move || {
        let mut silent = Vec::new();
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until {
            for address in &strangers {
                let Ok(mut stream) = TcpStream::connect(address) else { continue };
                match silent.len() % 4 {
                    0 => drop(stream.write_all(&[0xff; 4_096])),
                    1 => drop(stream.write_all(b"GET / HTTP/1.1\r\n\r\n")),
                    2 => drop(stream.write_all(b"MILLSTRM\0\x01")),
                    _ => {}
                }
                silent.push(stream);
            }
            thread::sleep(Duration::from_millis(20));
        }
        drop(silent);
    });
    thread::sleep(Duration::from_millis(100));
    let joined = join_all((0..3).map(|process| membership(process, &addresses)).collect());
    let mut joined: Vec<Joined> = joined.into_iter().map(Result::unwrap).collect();
    knocking.join().unwrap();
    for (process, joined) in joined.iter().enumerate() {
        let others: Vec<bool> = joined.data.iter().map(Option::is_some).collect();
        assert_eq!(others, (0..3).map(|other| other != process).collect::<Vec<_>>());
        let control: Vec<usize> = joined.control.keys().copied().collect();
        assert_eq!(control, if process == 0 { vec![1, 2] } else { vec![0] });
    }
    // Each connection is with whom it says.
    let mut two = joined.pop().unwrap();
    let mut one = joined.pop().unwrap();
    one.data[2].as_mut().unwrap().write_all(b"to 2").unwrap();
    let mut heard = [0; 4];
    two.data[1].as_mut().unwrap().read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"to 2");
}

/// Strangers at a door: all say nothing, but for some of which each says a byte now and then. They stay until they are dropped.
fn crowd(address: &str) -> Vec<TcpStream> {
    let open = Instant::now() + Duration::from_secs(20);
    let mut crowd = Vec::new();
    // More than are heard at once.
    while crowd.len() < 80 {
        match TcpStream::connect(address) {
            Ok(stream) => crowd.push(stream),
            Err(error) => assert!(Instant::now() < open, "nobody listens at {address}: {error}"),
        }
    }
    for talker in &crowd[70..] {
        let mut talker = talker.try_clone().unwrap();
        thread::spawn(move || {
            while talker.write_all(b"M").is_ok() {
                thread::sleep(Duration::from_millis(200));
            }
        });
    }
    crowd
}

#[test]
fn nobody_waits_for_strangers_when_all_are_there() {
    let at = addresses(3);
    let memberships: Vec<Membership> = (0..3).map(|process| membership(process, &at)).collect();
    let took = thread::scope(|scope| {
        let first = scope.spawn(|| join(&memberships[0]));
        let crowd = crowd(&at[0]);
        let began = Instant::now();
        let others: Vec<_> = memberships[1..].iter().map(|membership| scope.spawn(|| join(membership))).collect();
        // Whoever goes when it has joined fails those that still wait for each other.
        let _first = first.join().unwrap().unwrap();
        let _others: Vec<Joined> = others.into_iter().map(|other| other.join().unwrap().unwrap()).collect();
        drop(crowd);
        began.elapsed()
    });
    assert!(took < handshake::PATIENCE * 4 / 5, "{took:?}");

    // Nor does a start that fails.
    let mut alone = membership(0, &addresses(2));
    alone.start_timeout = Duration::from_millis(500);
    let took = thread::scope(|scope| {
        let waiting = scope.spawn(|| error(join(&alone)));
        let crowd = crowd(&alone.addresses[0]);
        let began = Instant::now();
        assert!(waiting.join().unwrap().contains("these processes are not there: 1"));
        drop(crowd);
        began.elapsed()
    });
    assert!(took < handshake::PATIENCE * 4 / 5, "{took:?}");
}

#[test]
fn a_handshake_has_one_deadline_however_its_bytes_come() {
    let (mut near, far) = pair();
    let talking = thread::spawn(move || {
        while near.write_all(b"M").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let mut heard = [0; 10_000];
    let said = handshake::Timed::new(&far, Duration::from_millis(300)).read_exact(&mut heard).unwrap_err();
    // Which of the two it is depends on whether the operating system's clock or ours was first.
    assert!(matches!(said.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock), "{said}");
    drop(far);
    talking.join().unwrap();
}

#[test]
fn a_process_that_is_not_there_is_named() {
    let mut alone = membership(0, &addresses(3));
    alone.start_timeout = Duration::from_millis(300);
    let said = error(join(&alone));
    assert!(said.contains("these processes are not there: 1, 2"), "{said}");
    alone.shape.process = 2;
    let said = error(join(&alone));
    assert!(said.contains("process 0 at 127.0.0.1:") && said.contains("is not there after"), "{said}");
}

#[test]
fn processes_that_run_something_else_are_refused_and_told_why() {
    type Change = fn(&mut Membership);
    let different: [(&str, Change); 2] = [
        ("it runs another build or another topology", |other| other.runs = [8; 32]),
        ("it expects 2 processes of 3 workers, this one 2 of 2", |other| other.shape.workers = 3),
    ];
    for (why, change) in different {
        let addresses = addresses(2);
        let mut memberships = vec![membership(0, &addresses), membership(1, &addresses)];
        memberships[0].start_timeout = Duration::from_secs(1);
        change(&mut memberships[1]);
        let said: Vec<String> = join_all(memberships).into_iter().map(error).collect();
        assert!(said[0].contains("not there"), "{}", said[0]);
        assert!(said[1].contains("refuses this one") && said[1].contains(why), "{}", said[1]);
    }
}

#[test]
fn without_the_secret_nobody_learns_anything() {
    let addresses = addresses(2);
    let mut memberships = vec![membership(0, &addresses), membership(1, &addresses)];
    memberships.iter_mut().for_each(|membership| membership.start_timeout = Duration::from_secs(1));
    memberships[1].secret = "another one, as long".into();
    let said: Vec<String> = join_all(memberships).into_iter().map(error).collect();
    assert!(said[1].contains("another secret"), "{}", said[1]);

    // A listener's proof can't be sent back to it as the dialer's.
    let (mut near, far) = pair();
    let answering =
        thread::spawn(move || handshake::answer(&far, SECRET, &[1; 16], |_| Ok(())).map_err(|error| error.to_string()));
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listening.local_addr().unwrap();
    let dialing = thread::spawn(move || {
        let stream = TcpStream::connect(address).unwrap();
        handshake::dial(&stream, SECRET, &hello()).map_err(|error| error.to_string())
    });
    let mut dialer = listening.accept().unwrap().0;
    let mut said = [0; 97];
    dialer.read_exact(&mut said).unwrap();
    near.write_all(&said).unwrap();
    let mut heard = [0; 80];
    near.read_exact(&mut heard).unwrap();
    near.write_all(&heard[48..]).unwrap();
    let answered = answering.join().unwrap().unwrap_err();
    assert!(answered.contains("another secret"), "{answered}");
    drop(dialer);
    assert!(dialing.join().unwrap().is_err());
}

#[test]
fn a_handshake_with_a_stranger_fails() {
    let (mut near, far) = pair();
    near.write_all(&[b'x'; 200]).unwrap();
    let answered = handshake::answer(&far, SECRET, &[0; 16], |_| Ok(()));
    assert!(matches!(answered, Err(HandshakeError::Stranger)), "{answered:?}");
    let (near, far) = pair();
    drop(far);
    assert!(matches!(handshake::dial(&near, SECRET, &hello()), Err(HandshakeError::Io(_))));
}

#[test]
fn a_link_carries_messages_of_any_size() {
    let (near, far) = pair();
    let (heard, inbox) = unbounded::<(usize, ToMember)>();
    let sending: Link<ToMember> = Link::start::<ToMember>(1, near, unbounded().0).unwrap();
    let receiving: Link<ToMember> = Link::start(0, far, heard).unwrap();
    let rows = |length: usize| ToMember::State {
        node: "features.card".into(),
        key_group: 3,
        rows: vec![Bytes(vec![9; length]), Bytes(Vec::new())],
    };
    for length in [0, 5_000, 20_000_000] {
        sending.send(&rows(length));
        let (process, message) = inbox.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!((process, format!("{message:?}")), (0, format!("{:?}", rows(length))));
    }
    // Ended, each may go in any order.
    sending.end();
    receiving.end();
    drop(sending);
    let gone = Instant::now() + Duration::from_secs(10);
    while receiving.is_up() && Instant::now() < gone {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(!receiving.is_up());
}
