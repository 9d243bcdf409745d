//! The search: every state that any order of actions leads to, each visited once.
//!
//! Owns: what was visited. Threads: one. Locks: none. Blocks on: nothing.
//! Upholds: a broken promise comes with the actions that led to it, as few as there can be when the search is broad.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use crate::link::Mutation;
use crate::link::explore::action::Action;
use crate::link::explore::law::{Broken, Law, broken};
use crate::link::explore::world::{Case, World};

/// How to search.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Shortest traces first; else little memory first.
    pub(super) broad: bool,
    /// From one in so many states everything must still become good without further faults; from those at rest, always.
    pub(super) sample: u64,
    /// Give up beyond so many states.
    pub(super) most: usize,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) states: usize,
    pub(super) transitions: usize,
    /// States from which a fair continuation was run.
    pub(super) continued: usize,
    /// Longest row of actions.
    pub(super) depth: u32,
    /// All states were visited.
    pub(super) exhausted: bool,
    pub(super) broken: Option<(Broken, Vec<Action>)>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, transitions, continued, depth, .. } = self;
        write!(f, "{states:>9} states {transitions:>10} transitions {continued:>8} continued, depth {depth}")?;
        if let Some((Broken { law, detail }, trace)) = &self.broken {
            write!(f, "\n  broken: {law}\n  {detail}\n  after:")?;
            trace.iter().try_for_each(|action| write!(f, "\n    {action:?}"))?;
        }
        Ok(())
    }
}

/// Fingerprints are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(word) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*word);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// How a state was reached first.
struct Step {
    from: u32,
    action: Action,
}

struct Search<'a> {
    case: &'a Case,
    plan: Plan,
    found: Found,
    seen: HashSet<u128, BuildHasherDefault<Identity>>,
    steps: Vec<Step>,
    /// States whose successors are not known yet, with their step and depth.
    open: VecDeque<(World, u32, u32)>,
}

/// Searches `case` from its beginning.
pub(super) fn search(case: &Case, mutation: Option<Mutation>, plan: Plan) -> Found {
    let found = Found { states: 0, transitions: 0, continued: 0, depth: 0, exhausted: false, broken: None };
    let mut search = Search { case, plan, found, seen: HashSet::default(), steps: Vec::new(), open: VecDeque::new() };
    if let Err((broken, trace)) = search.run(World::new(case, mutation)) {
        search.found.broken = Some((broken, trace));
    }
    search.found
}

type Failure = (Broken, Vec<Action>);

impl Search<'_> {
    fn run(&mut self, start: World) -> Result<(), Failure> {
        self.begin(start)?;
        let mut actions = Vec::new();
        while self.found.states < self.plan.most {
            let next = if self.plan.broad { self.open.pop_front() } else { self.open.pop_back() };
            let Some((world, step, depth)) = next else {
                self.found.exhausted = true;
                return Ok(());
            };
            world.actions(self.case, &mut actions);
            let mut at_rest = true;
            for action in &actions {
                let mut next = world.clone();
                let moved = next.apply(self.case, *action).and_then(|moved| next.check(self.case).map(|()| moved));
                if moved.map_err(|broken| (broken, self.trace(step, Some(*action))))? {
                    at_rest &= !action.is_fair();
                    self.found.transitions += 1;
                    self.visit(next, step, *action, depth + 1)?;
                }
            }
            if at_rest {
                world.check_rest(self.case).map_err(|broken| (broken, self.trace(step, None)))?;
                self.go_on(&world, step, 1)?;
            }
        }
        Ok(())
    }

    /// The first state: with a connection attached, if the case says so.
    fn begin(&mut self, mut world: World) -> Result<(), Failure> {
        let mut trace = Vec::new();
        while self.case.connected && world.sides.iter().any(|side| side.core.attached().is_none()) {
            let mut actions = Vec::new();
            world.actions(self.case, &mut actions);
            let wanted = |action: &&Action| {
                matches!(action, Action::Read { .. } | Action::Accept(_))
                    || (world.wires.is_empty() && matches!(action, Action::Dial(_)))
            };
            let Some(action) = actions.iter().find(wanted) else {
                return broken(Law::Agreement, "no first connection").map_err(|broken| (broken, trace));
            };
            trace.push(*action);
            world.apply(self.case, *action).map_err(|broken| (broken, trace.clone()))?;
            world.normalise();
        }
        self.steps.push(Step { from: 0, action: Action::Thaw });
        self.seen.insert(world.fingerprint());
        self.open.push_back((world, 0, 0));
        self.found.states = 1;
        Ok(())
    }

    fn visit(&mut self, mut world: World, from: u32, action: Action, depth: u32) -> Result<(), Failure> {
        world.normalise();
        let print = world.fingerprint();
        if !self.seen.insert(print) {
            return Ok(());
        }
        self.found.states += 1;
        self.found.depth = self.found.depth.max(depth);
        let step = self.steps.len() as u32;
        self.steps.push(Step { from, action });
        let seed = (print >> 64) as u64;
        if seed.is_multiple_of(self.plan.sample) {
            self.go_on(&world, step, seed | 1)?;
        }
        self.open.push_back((world, step, depth));
        Ok(())
    }

    /// Runs a fair continuation: what must happen does, in an order that `seed` chooses, without further faults, with
    /// one dial when it comes to rest unconnected.
    fn go_on(&mut self, world: &World, step: u32, mut seed: u64) -> Result<(), Failure> {
        const LONG: usize = 10_000;
        self.found.continued += 1;
        let (mut world, mut actions, mut after) = (world.clone(), Vec::new(), Vec::new());
        let mut redialled = false;
        let outcome = loop {
            if after.len() > LONG {
                break broken(Law::ComesToRest, format!("{LONG} actions and no end"));
            }
            world.actions(self.case, &mut actions);
            actions.retain(|action| action.is_fair());
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let count = actions.len();
            if count > 0 {
                actions.rotate_left((seed % count as u64) as usize);
            }
            let mut moved = Ok(false);
            for action in &actions {
                moved = world.apply(self.case, *action);
                if !matches!(moved, Ok(false)) {
                    after.push(*action);
                    break;
                }
            }
            match moved.and_then(|moved| world.check(self.case).map(|()| moved)) {
                Err(broken) => break Err(broken),
                Ok(true) => world.normalise(),
                Ok(false) if !redialled && world.sides[0].core.attached().is_none() => {
                    if let Err(broken) = world.check_rest(self.case) {
                        break Err(broken);
                    }
                    redialled = true;
                    let dial = Action::Dial(((seed >> 9) % 2) as u8);
                    world.sides.iter_mut().for_each(|side| side.edit().dials = 1);
                    after.push(dial);
                    if let Err(broken) = world.apply(self.case, dial) {
                        break Err(broken);
                    }
                }
                Ok(false) => break world.check_complete(self.case),
            }
        };
        outcome.map_err(|broken| {
            let mut trace = self.trace(step, None);
            trace.extend(after);
            (broken, trace)
        })
    }

    fn trace(&self, mut step: u32, last: Option<Action>) -> Vec<Action> {
        let mut trace: Vec<_> = last.into_iter().collect();
        while step != 0 {
            let Step { from, action } = &self.steps[step as usize];
            trace.push(*action);
            step = *from;
        }
        trace.reverse();
        trace
    }
}
