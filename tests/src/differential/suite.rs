//! Runs the case files and sums up.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::backend::{self, Recorder};
use super::bootstrap::{bootstrap, ports};
use super::case::{Case, CaseFile};
use super::client;
use super::compare::{self, Outcome};
use super::io::Certificates;
use super::known::Known;
use super::proxy::{Kind, Proxy, envoy};
use crate::run;

/// Files that run at the same time.
const AT_ONCE: usize = 4;

/// Case and differences.
type Verdicts = Vec<(String, Vec<String>)>;

/// The outcome of every case of a file, by name.
type Outcomes = BTreeMap<String, Outcome>;

/// Runs the suite, prints every disagreement, and ends with the line `differential: N agree, M listed`.
///
/// `filter`: only files or cases whose name contains it.
pub async fn run(filter: Option<&str>) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("differential");
    let known = Known::read(&folder)?;
    envoy()?;
    let work = run::work_dir().join("differential");
    let certs = Certificates::make(&work.join("certs"))?;
    let files = case_files(&folder)?;
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for (number, path) in files.iter().enumerate() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut file = CaseFile::read(path)?;
        if let Some(filter) = filter
            && !name.contains(filter)
        {
            file.cases.retain(|case| case.name.contains(filter));
        }
        if file.cases.is_empty() {
            continue;
        }
        let (permits, certs, work) = (permits.clone(), certs.clone(), work.join(&name));
        running.spawn(async move {
            let permit = permits.acquire().await?;
            let verdicts = run_file(&file, number, &work, &certs).await.with_context(|| name.clone())?;
            drop(permit);
            anyhow::Ok((name, file, number, verdicts))
        });
    }
    let mut all = Vec::new();
    let mut broken = Vec::new();
    let mut again = Vec::new();
    let mut add = |name: &str, verdicts: Verdicts| {
        all.extend(verdicts.into_iter().map(|(case, found)| (format!("{name}: {case}"), found)));
    };
    while let Some(done) = running.join_next().await {
        match done? {
            Ok((name, file, number, verdicts)) => {
                let unexpected = |(case, found): &(String, Vec<String>)| {
                    found.is_empty() == known.has(&format!("{name}: {case}"))
                };
                if verdicts.iter().any(unexpected) {
                    again.push((name, file, number));
                } else {
                    add(&name, verdicts);
                }
            }
            Err(error) => broken.push(format!("{error:#}")),
        }
    }
    // Beside others a timeout can strike one proxy and spare the other; alone it does not.
    for (name, file, number) in again {
        eprintln!("{name}: once more, alone");
        match run_file(&file, number, &work.join(&name), &certs).await {
            Ok(verdicts) => add(&name, verdicts),
            Err(error) => broken.push(format!("{name}: {error:#}")),
        }
    }
    std::fs::remove_dir_all(&work).ok();
    all.sort();
    sum_up(&all, &broken, &known, filter.is_none())
}

fn sum_up(all: &[(String, Vec<String>)], broken: &[String], known: &Known, complete: bool) -> Result<()> {
    let (mut agree, mut listed, mut failures) = (0, 0, broken.to_vec());
    for (case, found) in all {
        match (found.is_empty(), known.has(case)) {
            (true, false) => agree += 1,
            (false, true) => listed += 1,
            (true, true) => {
                failures.push(format!("{case}\n    agrees, but is listed in known.yaml: take it out"))
            }
            (false, false) => failures.push(format!("{case}\n    {}", found.join("\n    "))),
        }
    }
    if complete {
        let names: Vec<_> = all.iter().map(|(case, _)| case.clone()).collect();
        let missing = known.missing(&names);
        failures.extend(
            missing.iter().map(|case| format!("{case}\n    is listed in known.yaml and does not exist")),
        );
    }
    for failure in &failures {
        eprintln!("DISAGREES {failure}");
    }
    println!("differential: {agree} agree, {listed} listed");
    ensure!(failures.is_empty(), "{} of {} cases disagree and are not listed", failures.len(), all.len());
    Ok(())
}

/// The configuration of each case file, with its name; the certificates that they name are made in `work`.
///
/// # Errors
/// When a case file is not one.
pub fn bootstraps(work: &Path) -> Result<Vec<(String, serde_json::Value)>> {
    let certs = Certificates::make(work)?;
    let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
    let of = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = bootstrap(&CaseFile::read(path)?, ip, &certs.folder, &work.join("log"))?;
        Ok((name, serde_json::from_str(&text)?))
    };
    case_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("differential"))?.iter().map(of).collect()
}

fn case_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "yaml") && !path.ends_with("known.yaml"))
        .collect();
    files.sort();
    ensure!(!files.is_empty(), "no case files in {}", folder.display());
    Ok(files)
}

/// A loopback address that no other run has: ports need not be sought then.
fn address(file: usize, kind: Kind) -> IpAddr {
    let run = 64 + (std::process::id() % 128) as u8;
    Ipv4Addr::new(127, run, file as u8 + 1, if kind == Kind::Envoy { 1 } else { 2 }).into()
}

async fn run_file(file: &CaseFile, number: usize, work: &Path, certs: &Certificates) -> Result<Verdicts> {
    // The logs of a run before must not be taken for this one's.
    std::fs::remove_dir_all(work).ok();
    std::fs::create_dir_all(work)?;
    let (envoy, mesh) = tokio::join!(
        run_proxy(file, Kind::Envoy, number, work, certs),
        run_proxy(file, Kind::MeshNode, number, work, certs),
    );
    let (envoy, mesh) = (envoy.context("with envoy")?, mesh.context("with mesh-node")?);
    let none = Outcome::default();
    let verdict = |case: &Case| {
        let of = |outcomes: &Outcomes| outcomes.get(&case.name).cloned().unwrap_or_else(|| none.clone());
        let (envoy, mesh) = (of(&envoy), of(&mesh));
        if std::env::var_os("MESH_TESTS_VERBOSE").is_some() {
            eprintln!("{}: {}", case.name, serde_json::to_string(&envoy).unwrap_or_default());
        }
        (case.name.clone(), compare::differences(case, &envoy, &mesh))
    };
    let mut verdicts: Vec<_> = file.cases.iter().map(verdict).collect();
    let stray = |outcomes: &Outcomes| outcomes.get("").map(|o| o.seen.len()).unwrap_or(0);
    if stray(&envoy) != stray(&mesh) {
        let found = format!("envoy {}, mesh-node {}", stray(&envoy), stray(&mesh));
        verdicts.push(("requests that no case sent".to_owned(), vec![found]));
    }
    Ok(verdicts)
}

async fn run_proxy(
    file: &CaseFile,
    kind: Kind,
    number: usize,
    work: &Path,
    certs: &Certificates,
) -> Result<Outcomes> {
    let ip = address(number, kind);
    let log = work.join(format!("{}.log", kind.name()));
    let recorder = Arc::new(Recorder::default());
    let backends = backend::start(&file.backends, &ports(file), ip, certs, &recorder).await?;
    let mut proxy = Proxy::start(kind, &bootstrap(file, ip, &certs.folder, &log)?, work, ip).await?;
    let mut outcomes = Outcomes::new();
    for (at, case) in file.cases.iter().enumerate() {
        let answers = run_case(case, at, ip, certs, &recorder).await;
        outcomes.insert(case.name.clone(), Outcome { answers, ..Outcome::default() });
        if !proxy.is_running() {
            bail!("{} ended in case {:?}: {}", kind.name(), case.name, proxy.errors());
        }
    }
    tokio::task::spawn_blocking(move || proxy.stop()).await??;
    drop(backends);
    let name_of = |id: &str| {
        let at: Option<usize> = id.split('.').next().and_then(|at| at.parse().ok());
        at.and_then(|at| file.cases.get(at)).map_or_else(String::new, |case| case.name.clone())
    };
    for (id, records) in recorder.take() {
        outcomes.entry(name_of(&id)).or_default().seen.extend(records);
    }
    for line in std::fs::read_to_string(&log).unwrap_or_default().lines() {
        let id = line.split(' ').next().unwrap_or_default();
        outcomes.entry(name_of(id)).or_default().log.push(line.to_owned());
    }
    outcomes.values_mut().for_each(|outcome| forget_address(outcome, ip));
    Ok(outcomes)
}

/// The proxies have different addresses; nothing else of them may differ.
fn forget_address(outcome: &mut Outcome, ip: IpAddr) {
    let ip = ip.to_string();
    let clean = |text: &mut String| *text = text.replace(&ip, "IP");
    for answer in &mut outcome.answers {
        answer.headers.iter_mut().for_each(|(_, value)| clean(value));
        clean(&mut answer.body);
    }
    for record in &mut outcome.seen {
        record.headers.iter_mut().for_each(|(_, value)| clean(value));
        clean(&mut record.target);
    }
    outcome.log.iter_mut().for_each(clean);
    outcome.log.sort();
}

async fn run_case(
    case: &Case,
    at: usize,
    ip: IpAddr,
    certs: &Certificates,
    recorder: &Arc<Recorder>,
) -> Vec<client::Answer> {
    let requests = case.send.iter().flat_map(|request| std::iter::repeat_n(request, request.repeat));
    let requests: Vec<_> =
        requests.enumerate().map(|(n, request)| (format!("{at}.{n}"), request.clone())).collect();
    let mut answers = Vec::new();
    let mut held = Vec::new();
    for (n, (id, request)) in requests.iter().enumerate() {
        if case.overlap && n + 1 < requests.len() {
            let mut arrivals = recorder.arrivals();
            let before = *arrivals.borrow_and_update();
            let (id, request, certs) = (id.clone(), request.clone(), certs.clone());
            held.push(tokio::spawn(async move { client::send(&request, &id, ip, &certs).await }));
            let arrived = arrivals.wait_for(|now| *now > before);
            // A request that never arrives shows in its answer.
            tokio::time::timeout(std::time::Duration::from_secs(2), arrived).await.ok();
        } else {
            answers.extend(client::send(request, id, ip, certs).await);
        }
    }
    recorder.release();
    let mut first = Vec::new();
    for held in held {
        first.extend(held.await.unwrap_or_default());
    }
    first.extend(answers);
    first
}
