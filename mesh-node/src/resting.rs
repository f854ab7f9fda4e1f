//! Sockets for which there is nothing to do most of the time, because their bytes go another way. What the runtime keeps
//! for each of its sockets is some hundred bytes; those that rest are watched by one epoll descriptor of their worker
//! and cost it a word or two.
//!
//! Only tells that something has happened at a socket: who rests wakes up and sees what. Must not read or write.
//! A leaf with `unsafe` in it.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// One timer of the worker stands for those of all that rest: so much later than they are due are they woken at most.
const TICK: Duration = Duration::from_millis(500);
/// Events taken at a time.
const EVENTS: usize = 64;

thread_local! {
    static WATCH: RefCell<Weak<Watch>> = const { RefCell::new(Weak::new()) };
}

/// A socket that is the runtime's, or rests. Used as the runtime's only while it is awake.
#[derive(Debug)]
pub struct Socket(State);

#[derive(Debug)]
enum State {
    Awake(TcpStream),
    Resting(std::net::TcpStream),
    /// The runtime would not let go of it, or not take it up again.
    Lost,
}

impl Socket {
    pub fn new(socket: TcpStream) -> Self {
        Self(State::Awake(socket))
    }

    /// Nobody may wait for it any more.
    ///
    /// # Errors
    /// The socket is lost.
    pub fn rest(&mut self) -> io::Result<()> {
        self.0 = match std::mem::replace(&mut self.0, State::Lost) {
            State::Awake(socket) => State::Resting(socket.into_std()?),
            other => other,
        };
        Ok(())
    }

    /// What has come meanwhile is told as if it came now.
    ///
    /// # Errors
    /// The socket is lost: the runtime could not take it.
    pub fn wake(&mut self) -> io::Result<()> {
        self.0 = match std::mem::replace(&mut self.0, State::Lost) {
            State::Resting(socket) => State::Awake(TcpStream::from_std(socket)?),
            State::Lost => return Err(io::ErrorKind::NotConnected.into()),
            awake => awake,
        };
        Ok(())
    }

    /// Its descriptor, also while it rests.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            State::Awake(socket) => Some(socket.as_fd()),
            State::Resting(socket) => Some(socket.as_fd()),
            State::Lost => None,
        }
    }
}

impl Deref for Socket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        match &self.0 {
            State::Awake(socket) => socket,
            _ => unreachable!("a socket that rests is woken before it is used"),
        }
    }
}

impl DerefMut for Socket {
    fn deref_mut(&mut self) -> &mut TcpStream {
        match &mut self.0 {
            State::Awake(socket) => socket,
            _ => unreachable!("a socket that rests is woken before it is used"),
        }
    }
}

/// A pair of sockets that rest. To be ended before they are used again; it may outlive them.
#[derive(Debug)]
pub struct Rest {
    watch: Rc<Watch>,
    place: usize,
}

impl Rest {
    /// Watches sockets that rest, on behalf of the task of `cx`, which is woken soon after `due` as well.
    ///
    /// # Errors
    /// The kernel takes no more.
    pub fn begin(sockets: [BorrowedFd<'_>; 2], due: Option<Instant>, cx: &Context<'_>) -> io::Result<Self> {
        let watch = Watch::of_this_worker()?;
        let place = watch.places.borrow_mut().take(Place { waker: Some(cx.waker().clone()), due });
        let rest = Self { watch, place };
        for socket in sockets {
            // What is there already is told at once, and once is enough.
            let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLONESHOT;
            rest.watch.epoll.get_ref().0.add(socket, EpollEvent::new(events, rest.place as u64))?;
        }
        Ok(rest)
    }

    /// Ready: something has happened at one of the sockets.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        match &mut self.watch.places.borrow_mut().all[self.place].waker {
            Some(waker) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }

    /// When the task is to be woken though nothing has happened.
    pub fn until(&self, due: Option<Instant>) {
        self.watch.places.borrow_mut().all[self.place].due = due;
    }

    /// Watches the sockets no more.
    pub fn end(self, sockets: [BorrowedFd<'_>; 2]) {
        for socket in sockets {
            // One that could not be added is not there.
            let _ = self.watch.epoll.get_ref().0.delete(socket);
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.watch.places.borrow_mut().free(self.place);
    }
}

/// What rests on one worker.
#[derive(Debug)]
struct Watch {
    epoll: AsyncFd<Descriptor>,
    places: RefCell<Places>,
}

#[derive(Debug)]
struct Descriptor(Epoll);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

#[derive(Debug, Default)]
struct Places {
    all: Vec<Place>,
    free: Vec<usize>,
}

#[derive(Debug, Default)]
struct Place {
    /// Whom to wake; `None`: woken by an event already, or free.
    waker: Option<Waker>,
    due: Option<Instant>,
}

impl Places {
    fn take(&mut self, taken: Place) -> usize {
        if let Some(place) = self.free.pop() {
            self.all[place] = taken;
            return place;
        }
        self.all.push(taken);
        self.all.len() - 1
    }

    fn free(&mut self, place: usize) {
        self.all[place] = Place::default();
        self.free.push(place);
    }
}

impl Watch {
    fn of_this_worker() -> io::Result<Rc<Self>> {
        WATCH.with_borrow_mut(|known| {
            if let Some(watch) = known.upgrade() {
                return Ok(watch);
            }
            let epoll = Descriptor(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
            // SAFETY: the descriptor stays open, and the same, for as long as its owner, which is moved in.
            let epoll = unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) }?;
            let watch = Rc::new(Self { epoll, places: RefCell::default() });
            *known = Rc::downgrade(&watch);
            tokio::task::spawn_local(watch.clone().run());
            tokio::task::spawn_local(watch.clone().tell_the_time());
            Ok(watch)
        })
    }

    async fn run(self: Rc<Self>) {
        let mut events = [EpollEvent::empty(); EVENTS];
        while let Ok(mut ready) = self.epoll.readable().await {
            match self.epoll.get_ref().0.wait(&mut events, EpollTimeout::ZERO) {
                Ok(0) => ready.clear_ready(),
                Ok(count) => events[..count].iter().for_each(|event| self.stir(event.data() as usize)),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!("connections that rest are not watched: {error}");
                    ready.clear_ready();
                }
            }
        }
    }

    async fn tell_the_time(self: Rc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            let now = Instant::now();
            for place in &mut self.places.borrow_mut().all {
                if place.due.take_if(|due| *due <= now).is_some()
                    && let Some(waker) = &place.waker
                {
                    waker.wake_by_ref();
                }
            }
        }
    }

    fn stir(&self, place: usize) {
        let waker = self.places.borrow_mut().all.get_mut(place).and_then(|place| place.waker.take());
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    fn both(sockets: &[Socket; 2]) -> [BorrowedFd<'_>; 2] {
        sockets.each_ref().map(|socket| socket.descriptor().unwrap())
    }

    #[tokio::test]
    async fn what_comes_before_and_during_a_rest_wakes_and_is_read_afterwards() {
        let work = async {
            for before in [true, false] {
                let ((mut peer, a), (_silent, b)) = (connected().await, connected().await);
                let mut sockets = [a, b].map(Socket::new);
                if before {
                    peer.write_all(b"early").await.unwrap();
                }
                sockets.iter_mut().for_each(|socket| socket.rest().unwrap());
                let rest = poll_fn(|cx| Poll::Ready(Rest::begin(both(&sockets), None, cx).unwrap())).await;
                if !before {
                    assert!(poll_fn(|cx| Poll::Ready(rest.poll(cx))).await.is_pending());
                    peer.write_all(b"late!").await.unwrap();
                }
                poll_fn(|cx| rest.poll(cx)).await;
                rest.end(both(&sockets));
                sockets.iter_mut().for_each(|socket| socket.wake().unwrap());
                let mut heard = [0; 5];
                sockets[0].read_exact(&mut heard).await.unwrap();
                assert_eq!(&heard, if before { b"early" } else { b"late!" });
            }
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_rests_is_woken_when_it_is_due_and_rests_on() {
        let work = async {
            let ((_one, a), (_other, b)) = (connected().await, connected().await);
            let mut sockets = [a, b].map(Socket::new);
            sockets.iter_mut().for_each(|socket| socket.rest().unwrap());
            let due = Instant::now() + Duration::from_secs(3);
            let rest = poll_fn(|cx| Poll::Ready(Rest::begin(both(&sockets), Some(due), cx).unwrap())).await;
            // A task of its own, which is polled only when it is woken.
            let waiting = poll_fn(move |cx| {
                assert!(rest.poll(cx).is_pending());
                if Instant::now() < due { Poll::Pending } else { Poll::Ready(()) }
            });
            tokio::task::spawn_local(waiting).await.unwrap();
            assert!(Instant::now() <= due + TICK);
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn the_end_of_a_peer_wakes_and_a_place_is_used_again() {
        let work = async {
            let mut places = Vec::new();
            for _ in 0..3 {
                let ((peer, a), (_silent, b)) = (connected().await, connected().await);
                let mut sockets = [a, b].map(Socket::new);
                sockets.iter_mut().for_each(|socket| socket.rest().unwrap());
                let rest = poll_fn(|cx| Poll::Ready(Rest::begin(both(&sockets), None, cx).unwrap())).await;
                drop(peer);
                poll_fn(|cx| rest.poll(cx)).await;
                places.push(rest.place);
                // The sockets may go first.
                drop(sockets);
            }
            assert_eq!(places, [0; 3]);
        };
        LocalSet::new().run_until(work).await;
    }
}
