//! The library as a program uses it: a run that the program watches, stops and resumes, and progress in its own way.

mod scratch;

use std::fs;
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::sync::Mutex;

use scratch::{folder, names};
use weft::prelude::*;
use weft::progress::{self, Bar, Terminal, Unit};

/// An experiment on generated rows with eight steps, evaluated every second one.
fn experiment(output: &Path, settings: &[&str]) -> (Experiment, Base) {
    let text = "[data]\ngenerate = \"sudoku\"\ntrain_rows = 16\nheld_out_rows = 2\n\
                [train]\nmicro_batch_size = 4\nepochs = 2\neval_every = 2\ncheckpoint_every = 0\nlr = 1e-3\n\
                [model]\nlora_rank = 4\nlora_dropout = 0.1";
    let mut settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    settings.push(format!("train.output={}", output.display()));
    let recipe = Recipe::parse(text, Path::new("in the test"), &settings).expect("it is a recipe");
    Experiment::open(recipe).expect("there are base and rows")
}

const QUIET: Options = Options { resume: false, quiet: true };

#[test]
fn a_run_that_its_observer_stops_resumes_to_the_same_weights() {
    let [whole, stopped] = ["whole", "stopped"].map(folder);
    let (run, base) = experiment(&whole, &[]);
    let mut seen = vec![];
    let trained = run.train(base, QUIET, |report| {
        seen.push((report.step, report.held_out.is_some()));
        Continue(())
    });
    let trained = trained.expect("it trains");
    assert_eq!(seen, (1..=8).map(|step| (step, step % 2 == 0)).collect::<Vec<_>>());
    assert_eq!((trained.folder, trained.best), (whole.join("adapter"), None));
    let (run, base) = experiment(&stopped, &[]);
    let error = run.train(base, QUIET, |report| if report.step == 3 { Break(()) } else { Continue(()) });
    let error = error.map(|_| ()).expect_err("it is stopped");
    assert!(matches!(error, Error::Stopped { step: 3, .. }), "{error}");
    assert_eq!(names(&stopped.join("checkpoints")), ["step-00000003"], "nothing else asks for checkpoints");
    // A run is not begun over another one.
    let (run, base) = experiment(&stopped, &[]);
    let refused = run.train(base, QUIET, |_| Continue(())).map(|_| ()).expect_err("it holds a run").to_string();
    assert!(refused.contains("already holds a run"), "{refused}");
    let (run, base) = experiment(&stopped, &[]);
    let mut steps = vec![];
    let trained = run.train(base, Options { resume: true, ..QUIET }, |report| {
        steps.push(report.step);
        // A wish to stop after the last step stops nothing.
        if report.step == 8 { Break(()) } else { Continue(()) }
    });
    assert_eq!(trained.expect("it resumes").summary.first_step, 3);
    assert_eq!(steps, [4, 5, 6, 7, 8]);
    let [expected, resumed] =
        [&whole, &stopped].map(|run| fs::read(run.join("adapter/adapter_model.safetensors")).expect("it is saved"));
    assert!(expected == resumed, "the adapters have other bytes");
}

#[test]
fn every_weight_is_saved_and_the_best_beside_the_last() {
    let output = folder("full");
    let (run, base) = experiment(&output, &["model.trainable=full", "train.keep_best=true", "train.max_steps=2"]);
    let trained = run.train(base, QUIET, |_| Continue(())).expect("it trains");
    assert_eq!(trained.folder, output.join("checkpoint"));
    assert_eq!(trained.best, Some(output.join("best-checkpoint")));
    // The best step is the last one, so both folders have the same weights, which a base can be opened from.
    let tensors = |folder: &str| fs::read(output.join(folder).join("model.safetensors")).expect("it is saved");
    assert!(tensors("checkpoint") == tensors("best-checkpoint"));
    Base::open(&output.join("checkpoint")).expect("it is a checkpoint");
}

/// What the terminal of this process was asked to show.
static SHOWN: Mutex<Vec<String>> = Mutex::new(vec![]);

struct Lines;

impl Lines {
    fn write(line: String) {
        SHOWN.lock().expect("no test panicked").push(line);
    }
}

impl Terminal for Lines {
    fn bar(&self) -> Option<Box<dyn Bar>> {
        Some(Box::new(Lines))
    }

    fn tell(&self, line: &str) {
        Self::write(line.to_owned());
    }
}

impl Bar for Lines {
    fn begin(&self, unit: Unit, len: Option<u64>) {
        Self::write(format!("{unit:?} of {len:?}"));
    }

    fn set_position(&self, position: u64) {
        Self::write(format!("at {position}"));
    }

    fn set_message(&self, _: &str) {}

    fn restart_clock(&self) {}

    fn tell(&self, line: &str) {
        // The loss itself depends on the processor.
        Self::write(
            line.rsplit_once(" nats")
                .and_then(|(told, _)| told.rsplit_once(' '))
                .map_or(line, |(told, _)| told)
                .to_owned(),
        );
    }

    fn finish(&self) {
        Self::write("finished".to_owned());
    }
}

#[test]
fn a_program_shows_progress_in_its_own_way() {
    progress::install(Lines);
    let (run, base) = experiment(&folder("shown"), &["train.max_steps=2"]);
    run.train(base, Options::default(), |_| Continue(())).expect("it trains");
    let shown = SHOWN.lock().expect("no test panicked");
    let expected =
        ["Steps of Some(2)", "at 0", "step 0: held-out loss", "at 1", "at 2", "step 2: held-out loss", "finished"];
    assert_eq!(*shown, expected);
}
