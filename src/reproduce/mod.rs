//! The paper's comparison: every arm under every setting over several seeds. All arms of a seed share the base, the
//! order of the rows, and the draws. Finished work is stored in the recipe's `train.output` and isn't repeated, so a
//! comparison that was killed resumes where it was.

pub mod arms;
mod charts;
pub(crate) mod domains;
pub(crate) mod findings;
pub(crate) mod forgetting;
pub(crate) mod markdown;
pub(crate) mod rows;
pub(crate) mod run;
pub mod sentences;
pub(crate) mod statistics;
pub mod study;
pub(crate) mod timing;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::counted::counted;
use crate::error::{Error, Result};
use crate::files::{make_folder, write_whole};
use crate::interrupt;
use crate::parallel::collective::Collective;
use crate::recipe::Recipe;
use crate::train::run::lock;
use findings::Findings;
use run::{Outcome, Point};
use study::{PlannedBase, PlannedRun, Study};

/// The outcomes of a comparison so far.
pub struct Outcomes {
    /// The outcome of the base under each setting.
    pub bases: Vec<Outcome>,
    /// The base's scores under each setting on the rows of the seeds after the first, if each seed holds out rows of its own; seeds
    /// on whose rows it isn't scored are left out.
    pub bases_of_others: Vec<Vec<Point>>,
    /// The outcomes of the runs, in the order of the study; `None` if a run isn't finished.
    pub runs: Vec<Option<Outcome>>,
    /// The times under each setting; `None` if none were measured.
    pub times: Vec<Option<timing::Times>>,
}

/// Reads the finished part of a comparison and does the rest if it `is_wanted`; `tell` is called for every run that
/// ends. The runs are divided among the ranks, which share `train.output`; the first rank returns every outcome.
///
/// # Errors
/// An outcome of another recipe; any failure of a run except a non-finite loss.
pub fn go(ranks: &dyn Collective, study: &Study, is_wanted: bool, tell: &(impl Fn(&str) + Sync)) -> Result<Outcomes> {
    let is_first = ranks.is_first();
    let _lock = (is_wanted && is_first).then(|| lock(&study.output)).transpose()?;
    // 1. Read the finished runs, report them, and refuse outcomes of another recipe.
    let mut runs = if is_first { read_runs(study)? } else { vec![None; study.runs.len()] };
    make_folder(&study.output)?;
    let left: Vec<usize> = (0..runs.len()).filter(|i| runs[*i].is_none()).collect();
    tell(&format!("{}, {} of them done", counted(runs.len(), "run"), runs.len() - left.len()));
    // 2. Score the bases.
    let mut bases = vec![];
    let mut bases_of_others = vec![];
    for PlannedBase { recipe, also, others } in study.bases.iter().filter(|_| is_first) {
        bases.push(match run::read(recipe, also)? {
            Some(outcome) => outcome,
            None => run::base(recipe, also, study.table.evaluations)?,
        });
        bases_of_others.push(score_others(others, is_wanted, tell)?);
    }
    let of_rows = rows::warnings(bases.iter().filter_map(|base| base.rows.as_ref()));
    of_rows.iter().for_each(|warning| crate::progress::tell(&format!("warning: {warning}")));
    // 3. Do the runs, several at a time.
    if is_wanted {
        let left = ranks.bytes_of_first(&serde_json::to_vec(&left).expect("numbers are JSON"));
        let left: Vec<usize> = serde_json::from_slice(&left).expect("the first wrote it");
        let own: VecDeque<usize> = left.into_iter().skip(ranks.rank()).step_by(ranks.size()).collect();
        runs = work_on(ranks, study, own, runs, tell)?;
    }
    if is_first && ranks.size() > 1 {
        runs = read_runs(study)?;
    }
    // 4. Measure times only without other ranks: a waiting rank would keep the machine busy.
    let is_alone = ranks.size() == 1;
    let times_of = |setting: usize| match timing::read(study, setting)? {
        None if is_wanted && is_alone && study.table.timing_rounds > 0 => timing::take(study, setting).map(Some),
        known => Ok(known),
    };
    let times = (0..study.table.settings.len()).map(times_of).collect::<Result<_>>()?;
    Ok(Outcomes { bases, bases_of_others, runs, times })
}

/// The base's scores on the rows of more seeds; those that aren't known yet are computed if that `is_wanted`.
fn score_others(others: &[Recipe], is_wanted: bool, tell: &impl Fn(&str)) -> Result<Vec<Point>> {
    let mut points = vec![];
    for (i, recipe) in others.iter().enumerate() {
        let outcome = match run::read(recipe, &[])? {
            Some(outcome) => outcome,
            // The first run stops too, and says how to continue.
            None if !is_wanted || interrupt::is_asked() => continue,
            None => {
                tell(&format!(
                    "scoring the base on the rows of seed {} ({} of {})",
                    recipe.train.seed,
                    i + 2,
                    others.len() + 1
                ));
                run::base_of_seed(recipe)?
            }
        };
        points.extend(outcome.points);
    }
    Ok(points)
}

fn read_runs(study: &Study) -> Result<Vec<Option<Outcome>>> {
    study.runs.iter().map(|run| run::read(&run.recipe, &run.also)).collect()
}

/// Does this rank's runs and waits for the other ranks.
fn work_on(
    ranks: &dyn Collective,
    study: &Study,
    own: VecDeque<usize>,
    runs: Vec<Option<Outcome>>,
    tell: &(impl Fn(&str) + Sync),
) -> Result<Vec<Option<Outcome>>> {
    let runs = Mutex::new(runs);
    match work(study, own, &runs, tell) {
        // A rank that was asked to stop first informs the others, which may be waiting for it.
        Err(stopped @ Error::Stopped { .. }) => {
            ranks.any(true);
            return Err(stopped);
        }
        worked => worked?,
    }
    match ranks.any(false) {
        true => Err(Error::Run("another rank was asked to stop; start again to continue".to_owned())),
        false => Ok(runs.into_inner().expect("no worker panicked")),
    }
}

/// Does runs in order, `parallel_runs` at a time; after an error no further run starts.
fn work(
    study: &Study,
    left: VecDeque<usize>,
    runs: &Mutex<Vec<Option<Outcome>>>,
    tell: &(impl Fn(&str) + Sync),
) -> Result<()> {
    // What was done before counts too, except with several ranks, of which each counts its own runs alone.
    let finished = runs.lock().expect("no worker panicked").iter().flatten().count();
    let of_all = if finished + left.len() == study.runs.len() { finished } else { 0 };
    let (count, began) = (left.len(), Instant::now());
    let (left, done) = (Mutex::new(left), AtomicUsize::new(0));
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let workers = study.table.parallel_runs.min(count.max(1));
    let threads = (rayon::current_num_threads() / workers).max(1);
    let worker = || {
        loop {
            let stopped = failed.lock().expect("no worker panicked").is_some();
            let Some(index) = left.lock().expect("no worker panicked").pop_front().filter(|_| !stopped) else { return };
            let run = &study.runs[index];
            match run::go(&run.recipe, &run.also, study.table.evaluations) {
                Ok(outcome) => {
                    let done = 1 + done.fetch_add(1, Ordering::Relaxed);
                    let rest = (done < count).then(|| began.elapsed() * (count - done) as u32 / done as u32);
                    let place = format!("{}/{}", of_all + done, of_all + count);
                    tell(&format!("{place} {}{}", line(study, run, &outcome), rest.map(left_of).unwrap_or_default()));
                    runs.lock().expect("no worker panicked")[index] = Some(outcome);
                }
                Err(error) => *failed.lock().expect("no worker panicked") = Some(error),
            }
        }
    };
    let pools: Vec<rayon::ThreadPool> = (0..workers)
        .map(|_| rayon::ThreadPoolBuilder::new().num_threads(threads).build())
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| {
            Error::Run(format!("{} of {} can't be started: {e}", counted(workers, "pool"), counted(threads, "thread")))
        })?;
    std::thread::scope(|scope| pools.iter().for_each(|pool| drop(scope.spawn(|| pool.install(worker)))));
    match failed.into_inner().expect("no worker panicked") {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The time that is left, as the end of a line.
fn left_of(rest: Duration) -> String {
    match rest.as_secs().div_ceil(60) {
        0 | 1 => "; less than a minute left".to_owned(),
        minutes => format!("; about {minutes} min left"),
    }
}

fn line(study: &Study, run: &PlannedRun, outcome: &Outcome) -> String {
    let (setting, arm) = (&study.table.settings[run.setting], &study.table.arms[run.arm]);
    let setting = if setting.is_only { String::new() } else { format!("{} ", setting.name) };
    let result = match (&outcome.diverged, outcome.points.last()) {
        (Some(reason), _) => format!("diverged: {reason}"),
        (None, Some(point)) => {
            let percent = point.accuracy.map(|a| format!("{:.1} %, ", 100.0 * a.accuracy)).unwrap_or_default();
            format!("{percent}held-out loss {:.4}", point.nll_bound)
        }
        (None, None) => "no step".to_owned(),
    };
    format!("{setting}{arm} seed {}: {result}", run.seed)
}

/// Writes the findings of a comparison: `report.md`, `report.json` with every score, and the charts. Returns them.
///
/// # Errors
/// A file that can't be written.
pub fn write(study: &Study, outcomes: &Outcomes, recipe: &Path) -> Result<Findings> {
    let findings = Findings::of(study, outcomes);
    let json = serde_json::to_string_pretty(&findings).expect("findings are JSON");
    write_whole(&study.output.join("report.json"), json.as_bytes())?;
    for (name, svg) in charts::files(&findings) {
        write_whole(&study.output.join(name), svg.as_bytes())?;
    }
    write_whole(&study.output.join("report.md"), markdown::page(&findings, recipe).as_bytes())?;
    Ok(findings)
}
