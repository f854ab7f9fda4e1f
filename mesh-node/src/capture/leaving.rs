//! Pods that leave: by which steps a released pod's new connections become its own again, and the way back for a pod
//! that is enrolled again while connections of its last time still run.
//!
//! Every step but the last is a matter of time, because what is under way in the kernel (a handshake, an accepted
//! connection nobody has taken yet) is not to be seen from here.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::enrol::{self, Context, Enrolled, Listeners};
use super::error::{CaptureError, PodProblem};
use super::netns::PodSockets;
use super::pods::PodSpec;
use super::record::Record;
use super::release;
use crate::model::workload::WorkloadLimits;

/// How long connections are still brought to a released pod's listeners, for those that were marked.
const LINGER: Duration = Duration::from_secs(1);
/// How much longer they are served than connections are brought to them: a connection that was on its way must not
/// find the listener closed.
const OUTLAST: Duration = Duration::from_millis(600);
/// Workers close listeners at once, unless they are stuck.
const CLOSING: Duration = Duration::from_secs(1);

/// A released pod of which something is still served. Keeps nothing of it alive.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) spec: PodSpec,
    pub(super) netns_id: (u64, u64),
    pub(super) sockets: Weak<PodSockets>,
    pub(super) step: Step,
    cookie: u64,
    limits: Arc<WorkloadLimits>,
    open: Weak<()>,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Connections are brought to the listeners until then.
    Brought { until: Instant },
    /// New connections meet the application; the listeners are open until then.
    Accepted { until: Instant },
    /// Only connections that run are left.
    Closed,
}

impl Step {
    pub(super) fn first(now: Instant) -> Self {
        Self::Brought { until: now + LINGER }
    }

    pub(super) fn is_over(self, now: Instant) -> bool {
        match self {
            Self::Brought { until } | Self::Accepted { until } => until <= now,
            Self::Closed => false,
        }
    }

    pub(super) fn next(self, now: Instant) -> Self {
        match self {
            Self::Brought { .. } => Self::Accepted { until: now + OUTLAST },
            Self::Accepted { .. } | Self::Closed => Self::Closed,
        }
    }
}

impl Leaving {
    pub(super) fn begin(pod: Enrolled, now: Instant) -> Self {
        let Enrolled { spec, cookie, netns_id, workload, sockets, open } = pod;
        Self {
            spec,
            netns_id,
            sockets,
            step: Step::first(now),
            cookie,
            limits: workload.limits.clone(),
            open,
        }
    }

    /// Enrols `spec`, which is this pod, again in its slot. Returns new listeners if the old ones are closed; else
    /// those go on: new ones would share the port with them, and what the kernel has just given to a listener
    /// that closes is reset.
    ///
    /// # Errors
    /// One problem with this pod, which then is still leaving.
    pub(super) fn return_to(
        &self,
        context: &mut Context<'_>,
        slot: u32,
        spec: &PodSpec,
        sockets: &Arc<PodSockets>,
        record: Option<Record>,
    ) -> Result<(Enrolled, Option<Vec<Listeners>>), CaptureError> {
        let outcome = self.try_return(context, slot, spec, sockets, record);
        outcome.map_err(|problem| {
            release::stop_steering(context.maps, slot, Some(self.cookie), &spec.ips);
            problem.of(spec.display_name())
        })
    }

    fn try_return(
        &self,
        context: &mut Context<'_>,
        slot: u32,
        spec: &PodSpec,
        sockets: &Arc<PodSockets>,
        record: Option<Record>,
    ) -> Result<(Enrolled, Option<Vec<Listeners>>), PodProblem> {
        let listeners = match self.step {
            Step::Brought { .. } | Step::Accepted { .. } => None,
            Step::Closed => {
                self.wait_closed();
                Some(enrol::listen(context, slot, sockets)?)
            }
        };
        if !matches!(self.step, Step::Brought { .. })
            && let Some(mut record) = record
        {
            enrol::attach(context, &sockets.pod, &mut record)?;
        }
        enrol::fill_maps(context.maps, context.settings, context.guard, slot, spec, self.cookie)
            .map_err(PodProblem::setup("filling the kernel maps"))?;
        let limits = self.limits.clone();
        let workload = enrol::workload(context.settings, spec, sockets.clone(), limits, Arc::default());
        let pod = Enrolled {
            spec: spec.clone(),
            cookie: self.cookie,
            netns_id: self.netns_id,
            workload,
            sockets: self.sockets.clone(),
            open: listeners.as_deref().map_or_else(|| self.open.clone(), enrol::open_of),
        };
        Ok((pod, listeners))
    }

    fn wait_closed(&self) {
        let until = Instant::now() + CLOSING;
        while self.open.strong_count() > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_close_only_a_while_after_the_last_connection_was_brought_to_them() {
        let start = Instant::now();
        let brought = Step::first(start);
        assert!(!brought.is_over(start));
        let stopped = start + LINGER;
        assert!(brought.is_over(stopped));
        let accepted = brought.next(stopped);
        assert!(!accepted.is_over(stopped));
        assert!(accepted.is_over(stopped + OUTLAST));
        let closed = accepted.next(stopped + OUTLAST);
        assert!(matches!(closed, Step::Closed));
        assert!(!closed.is_over(stopped + OUTLAST + CLOSING), "it ends with its last connection");
    }
}
