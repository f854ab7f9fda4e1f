//! What the ends of requests and the checks of hosts do to a cluster.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::outlier::{Average, Report};
use super::{ClusterState, Host};

impl ClusterState {
    /// Tells how a try at a host ended. Ejects the host if that is one failure too many.
    pub fn report(&self, host: &Host, report: Report) {
        let Some(detector) = &self.detector else { return };
        if detector.report(host, report, || self.host_count(), &*self.random) {
            self.health_changed();
        }
    }

    /// Judges the hosts by what was reported in the interval that is over.
    pub(crate) fn judge_outliers(&self) {
        let Some(detector) = &self.detector else { return };
        if detector.judge(&self.hosts(), &*self.random) {
            self.health_changed();
        }
    }

    /// The last interval's success rates of requests and of connecting, for `/clusters`; `None` without outlier
    /// detection.
    pub fn outlier_averages(&self) -> Option<[Average; 2]> {
        self.detector.as_ref().map(|detector| detector.averages())
    }
}

/// Judges the hosts of a cluster from time to time, on the current runtime.
pub(super) fn start_judging(cluster: &Arc<ClusterState>) -> Option<AbortHandle> {
    let interval = cluster.detector.as_ref()?.interval();
    Some(tokio::spawn(judge(Arc::downgrade(cluster), interval)).abort_handle())
}

async fn judge(cluster: Weak<ClusterState>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(cluster) = cluster.upgrade() else { return };
        cluster.judge_outliers();
    }
}
