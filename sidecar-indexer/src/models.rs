//! The models as they are served now: their profiles as read from files, and what the engines and the clock change.

use crate::config::{ContentFormat, Model};
use crate::profile::{self, Loaded};
use crate::selftest::spelling::{self, Outcome};
use crate::zone::Zone;
use affinity::Slot;
use affinity::profile::{Partial, Profile, Profiles, Renderer, SELF_TEST};
use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Reads a model's files and adds what is configured; relative paths start at `base`.
///
/// # Errors
/// As [`profile::load`].
pub fn load(model: &Model, base: &Path) -> Result<Loaded> {
    let mut loaded = profile::load(model, base)?;
    let profile = &mut loaded.profile;
    if !model.default_chat_template_kwargs.is_empty() {
        profile.default_kwargs = serde_json::to_string(&model.default_chat_template_kwargs)?;
    }
    profile.exclude_unused_tools = model.exclude_tools_when_tool_choice_none;
    profile.token_ids = model.token_ids;
    let format = model.chat_template_content_format;
    if format != ContentFormat::Auto
        && let Renderer::Jinja(templates) = &mut profile.renderer
    {
        for template in templates {
            template.takes_parts = format == ContentFormat::Openai;
        }
    }
    Ok(loaded)
}

/// As [`load`]; a profile that its own tokenizer does not agree with is switched off.
///
/// # Errors
/// As [`load`].
pub fn load_tested(model: &Model, base: &Path) -> Result<Loaded> {
    let mut loaded = load(model, base)?;
    if let Outcome::Tested { differ, .. } = spelling::test(&loaded.profile, &loaded.vocabulary)
        && let Some((text, difference)) = differ.first()
    {
        loaded.notes.push(format!(
            "no prompt can be predicted: its tokenizer does something to texts that is not reproduced: of {text:?}, \
             {difference}"
        ));
        SELF_TEST.clone_into(&mut loaded.profile.opaque);
    }
    Ok(loaded)
}

/// How an engine's self-test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing could be compared.
    Untested,
    /// What was compared is equal.
    Passed,
    /// Something differs.
    Failed,
}

/// The names an engine serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Of its model, with what the engine loaded for them (`root`).
    pub names: Vec<(String, Option<String>)>,
    /// Of LoRA adapters.
    pub adapters: Vec<String>,
}

/// Longest name taken from an engine's list, in bytes, and most of them.
const LONGEST: usize = 256;
const MOST: usize = 1000;

impl Listed {
    /// From what `GET /v1/models` answers: adapters are those that name a parent.
    #[must_use]
    pub fn read(answer: &Value) -> Option<Self> {
        let cards = answer.get("data")?.as_array()?;
        let mut this = Self::default();
        for card in cards {
            let name = card.get("id")?.as_str()?.to_owned();
            // They go to every gateway: nothing endless, nothing that could be another namespace.
            if name.len() > LONGEST || name.contains(char::is_control) || this.adapters.len() + this.names.len() >= MOST
            {
                continue;
            }
            let adapter = card.get("parent").is_some_and(|parent| !parent.is_null());
            let root = card.get("root").and_then(Value::as_str).map(str::to_owned);
            if adapter { this.adapters.push(name) } else { this.names.push((name, root)) }
        }
        this.names.sort();
        this.adapters.sort();
        Some(this)
    }
}

/// All models, by number.
pub struct Models {
    models: Vec<Served>,
    /// Goes up whenever the profiles change.
    version: u64,
    page: Vec<u8>,
}

struct Served {
    /// As read from its files.
    profile: Profile,
    zone: Zone,
    /// Endpoints that are asked and tested, each with all data-parallel ranks that it stands for, itself included.
    endpoints: BTreeMap<Slot, Vec<Slot>>,
    listed: BTreeMap<Slot, Listed>,
    verdicts: BTreeMap<Slot, Verdict>,
}

impl Models {
    /// Takes the profiles as read from files.
    #[must_use]
    pub fn new(models: impl IntoIterator<Item = (Profile, Zone)>, now: i64) -> Self {
        let mut this = Self { models: Vec::new(), version: 0, page: Vec::new() };
        this.replace(models, now);
        this
    }

    /// Takes other profiles, in place of all there were. What engines said of a model stays while it keeps its name.
    pub fn replace(&mut self, models: impl IntoIterator<Item = (Profile, Zone)>, now: i64) -> bool {
        let mut before = std::mem::take(&mut self.models);
        let served = |(profile, zone): (Profile, Zone)| {
            let at = before.iter().position(|served| served.profile.name == profile.name);
            let old = at.map(|at| before.swap_remove(at));
            let (endpoints, listed, verdicts) =
                old.map(|old| (old.endpoints, old.listed, old.verdicts)).unwrap_or_default();
            Served { profile, zone, endpoints, listed, verdicts }
        };
        self.models = models.into_iter().map(served).collect();
        self.tick(now)
    }

    /// An endpoint serves a model, with all data-parallel `ranks` that it stands for, itself included. Says whether the
    /// profiles changed.
    pub fn add(&mut self, slot: Slot, model: &str, ranks: Vec<Slot>) -> bool {
        if let Some(model) = self.models.iter_mut().find(|m| m.profile.name == model) {
            model.endpoints.insert(slot, ranks);
        }
        self.publish()
    }

    /// An endpoint serves nothing any more.
    pub fn leave(&mut self, slot: Slot) -> bool {
        for model in &mut self.models {
            model.endpoints.remove(&slot);
            model.listed.remove(&slot);
            model.verdicts.remove(&slot);
        }
        self.publish()
    }

    /// A model's number in [`Self::page`].
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u16> {
        self.models.iter().position(|model| model.profile.name == name).and_then(|at| u16::try_from(at).ok())
    }

    /// The version of [`Self::page`].
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The profiles, encoded.
    #[must_use]
    pub fn page(&self) -> &[u8] {
        &self.page
    }

    /// The time goes on. Says whether the profiles changed.
    pub fn tick(&mut self, now: i64) -> bool {
        for model in &mut self.models {
            model.profile.utc_offset = model.zone.offset(now);
        }
        self.publish()
    }

    /// When the time changes a profile next.
    #[must_use]
    pub fn next_change(&self, now: i64) -> Option<i64> {
        self.models.iter().filter_map(|model| model.zone.next_change(now)).min()
    }

    /// An engine was asked what it serves. Says whether the profiles changed, and whether it serves what it should.
    pub fn heard(&mut self, slot: Slot, listed: Listed) -> (bool, bool) {
        let Some(model) = self.models.iter_mut().find(|m| m.endpoints.contains_key(&slot)) else {
            return (false, true);
        };
        let configured = |name: &String| *name == model.profile.name || model.profile.aliases.contains(name);
        let root = listed.names.iter().find(|(name, _)| configured(name)).map(|(_, root)| root.clone());
        let right = root.is_some();
        // The names of other models behind the same address are none of this one's.
        let mut listed = if right { listed } else { Listed::default() };
        listed.names.retain(|(_, of)| root.as_ref() == Some(of));
        model.listed.insert(slot, listed);
        (self.publish(), right)
    }

    /// An engine's self-test ended. Says whether the profiles changed.
    pub fn tested(&mut self, slot: Slot, verdict: Verdict) -> bool {
        let Some(model) = self.models.iter_mut().find(|m| m.endpoints.contains_key(&slot)) else { return false };
        // What failed is not well again because it could not be tested.
        if verdict != Verdict::Untested || model.verdicts.get(&slot) != Some(&Verdict::Failed) {
            model.verdicts.insert(slot, verdict);
        }
        self.publish()
    }

    /// An engine is not there any more, and what it said does not count.
    pub fn gone(&mut self, slot: Slot) -> bool {
        for model in &mut self.models {
            model.verdicts.remove(&slot);
        }
        self.publish()
    }

    /// A model's profile as its engines should agree with it.
    #[must_use]
    pub fn profile_of(&self, slot: Slot) -> Option<&Profile> {
        self.models.iter().find(|m| m.endpoints.contains_key(&slot)).map(|m| &m.profile)
    }

    /// How many of each model's endpoints have each verdict.
    pub fn verdicts(&self) -> impl Iterator<Item = (&str, Verdict, usize)> {
        let all = [Verdict::Untested, Verdict::Passed, Verdict::Failed];
        self.models.iter().flat_map(move |model| {
            all.into_iter().map(move |verdict| {
                let of = |slot: &Slot| model.verdicts.get(slot).copied().unwrap_or(Verdict::Untested);
                let count = model.endpoints.keys().filter(|slot| of(slot) == verdict).count();
                (model.profile.name.as_str(), verdict, count)
            })
        })
    }

    fn publish(&mut self) -> bool {
        let page = self.profiles().encode();
        let changed = page != self.page;
        self.version += u64::from(changed);
        self.page = page;
        changed
    }

    /// The profiles as filters get them.
    #[must_use]
    pub fn profiles(&self) -> Profiles {
        // One name means one thing: what is configured goes before what was heard, and the first model before others.
        let configured = self.models.iter().flat_map(|m| {
            let names = m.profile.aliases.iter().chain(&m.profile.adapters);
            names.chain([&m.profile.name]).map(String::as_str)
        });
        let mut taken: BTreeSet<&str> = configured.collect();
        let mut models = Vec::with_capacity(self.models.len());
        for model in &self.models {
            let mut profile = model.profile.clone();
            for listed in model.listed.values() {
                let names = listed.names.iter().map(|(name, _)| name);
                profile.aliases.extend(names.filter(|name| taken.insert(name.as_str())).cloned());
                profile.adapters.extend(listed.adapters.iter().filter(|name| taken.insert(name.as_str())).cloned());
            }
            profile.partial = model.partial(profile.aliases.iter().chain(&profile.adapters));
            if model.verdicts.values().any(|verdict| *verdict == Verdict::Failed) {
                SELF_TEST.clone_into(&mut profile.opaque);
            }
            models.push(profile);
        }
        Profiles { models }
    }
}

impl Served {
    /// Of these names, those that some endpoints do not serve. Names in the configuration count as served everywhere: an
    /// engine may load an adapter only when it is asked for. An endpoint that has not said what it serves has none.
    fn partial<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<Partial> {
        let configured = |name: &String| self.profile.aliases.contains(name) || self.profile.adapters.contains(name);
        let serves = |slot: &Slot, name: &String| {
            let listed = self.listed.get(slot);
            listed.is_some_and(|l| l.adapters.contains(name) || l.names.iter().any(|(served, _)| served == name))
        };
        let partial = names.filter(|name| !configured(name)).map(|name| {
            let serving = self.endpoints.iter().filter(|(slot, _)| serves(slot, name));
            (name, serving.collect::<Vec<_>>())
        });
        let partial = partial.filter(|(_, serving)| serving.len() < self.endpoints.len());
        let slots =
            |serving: &[(&Slot, &Vec<Slot>)]| serving.iter().flat_map(|(_, ranks)| ranks.iter().copied()).collect();
        partial.map(|(name, serving)| Partial { name: name.clone(), slots: slots(&serving) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Two models, the first on two endpoints.
    fn models() -> Models {
        let profile =
            |name: &str| Profile { name: name.into(), aliases: vec![format!("{name}-alias")], ..Profile::default() };
        let zone = |text: &str| Zone::parse(text).unwrap();
        let mut models = Models::new([(profile("a"), zone("Europe/Berlin")), (profile("b"), zone("UTC"))], 0);
        for (slot, model) in [(0, "a"), (1, "a"), (2, "b")] {
            models.add(Slot(slot), model, vec![Slot(slot)]);
        }
        models
    }

    fn listed(names: &[&str], adapters: &[&str]) -> Listed {
        let owned = |name: &&str| (*name).to_owned();
        Listed {
            names: names.iter().map(|name| (owned(name), None)).collect(),
            adapters: adapters.iter().map(owned).collect(),
        }
    }

    #[test]
    fn an_engines_list_tells_names_from_adapters() {
        let answer = json!({"object": "list", "data": [
            {"id": "base", "parent": null}, {"id": "short"}, {"id": "ada", "parent": "base"}]});
        assert_eq!(Listed::read(&answer), Some(listed(&["base", "short"], &["ada"])));
        assert_eq!(Listed::read(&json!({"error": "no"})), None);
    }

    #[test]
    fn names_heard_of_are_added_while_they_are_served() {
        let mut models = models();
        let version = models.version();
        assert_eq!(models.heard(Slot(0), listed(&["a", "big"], &["ada"])), (true, true));
        assert_eq!(models.heard(Slot(1), listed(&["a"], &["ada", "eva"])), (true, true));
        let profiles = models.profiles();
        assert_eq!(profiles.models[0].aliases, ["a-alias", "big"]);
        assert_eq!(profiles.models[0].adapters, ["ada", "eva"]);
        assert_eq!(Profiles::decode(models.page()), Some(profiles));
        assert_eq!(models.version(), version + 2);
        assert_eq!(models.heard(Slot(1), listed(&["a"], &["ada", "eva"])), (false, true), "nothing new");
        models.heard(Slot(1), listed(&["a"], &["ada"]));
        assert_eq!(models.profiles().models[0].adapters, ["ada"]);
    }

    #[test]
    fn a_name_that_not_every_endpoint_serves_is_bound_to_those_that_do() {
        let mut models = models();
        let partial = |models: &Models| {
            let partial = models.profiles().models.swap_remove(0).partial;
            partial.into_iter().map(|p| (p.name, p.slots)).collect::<Vec<_>>()
        };
        models.heard(Slot(0), listed(&["a", "big"], &["ada"]));
        assert_eq!(partial(&models), [("big".into(), vec![Slot(0)]), ("ada".into(), vec![Slot(0)])]);
        models.heard(Slot(1), listed(&["a", "a-alias"], &["ada", "eva"]));
        assert_eq!(partial(&models), [("big".into(), vec![Slot(0)]), ("eva".into(), vec![Slot(1)])]);
        // Ranks serve what their engine does; an endpoint that comes has said nothing yet.
        models.add(Slot(1), "a", vec![Slot(1), Slot(5)]);
        assert!(models.add(Slot(7), "a", vec![Slot(7)]));
        let ada = ("ada".into(), vec![Slot(0), Slot(1), Slot(5)]);
        assert_eq!(partial(&models), [("big".into(), vec![Slot(0)]), ada, ("eva".into(), vec![Slot(1), Slot(5)])]);
    }

    #[test]
    fn an_engine_of_another_model_is_not_believed() {
        let mut models = models();
        assert_eq!(models.heard(Slot(2), listed(&["else"], &["ada"])), (false, false));
        assert_eq!(models.heard(Slot(2), listed(&["b-alias"], &["a", "ada"])), (true, true));
        assert_eq!(models.profiles().models[1].adapters, ["ada"], "one name means one thing");
    }

    #[test]
    fn one_engine_that_differs_switches_the_profile_off_until_it_agrees() {
        let mut models = models();
        let opaque = |models: &Models| models.profiles().models.into_iter().map(|m| m.opaque).collect::<Vec<_>>();
        assert!(!models.tested(Slot(0), Verdict::Passed));
        assert!(models.tested(Slot(1), Verdict::Failed));
        assert_eq!(opaque(&models), [SELF_TEST, ""]);
        assert!(!models.tested(Slot(0), Verdict::Passed), "the other one does not make up for it");
        assert!(!models.tested(Slot(1), Verdict::Untested));
        assert_eq!(opaque(&models), [SELF_TEST, ""]);
        let counts: Vec<_> = models.verdicts().filter(|(_, _, count)| *count > 0).collect();
        assert_eq!(counts, [("a", Verdict::Passed, 1), ("a", Verdict::Failed, 1), ("b", Verdict::Untested, 1)]);
        assert!(models.tested(Slot(1), Verdict::Passed));
        assert_eq!(opaque(&models), ["", ""]);
    }

    #[test]
    fn what_an_endpoint_said_goes_with_it_and_stays_when_profiles_are_replaced() {
        let mut models = models();
        models.heard(Slot(0), listed(&["a"], &["ada"]));
        models.tested(Slot(0), Verdict::Failed);
        let zone = || Zone::parse("UTC").unwrap();
        let profile = |name: &str| (Profile { name: name.into(), ..Profile::default() }, zone());
        assert!(models.replace([profile("c"), profile("a")], 0));
        let profiles = models.profiles();
        assert_eq!((models.number("a"), models.number("b")), (Some(1), None));
        assert_eq!((&profiles.models[1].adapters, &*profiles.models[1].opaque), (&vec!["ada".to_owned()], SELF_TEST));
        assert!(models.leave(Slot(0)));
        let profiles = models.profiles();
        assert_eq!((profiles.models[1].adapters.len(), &*profiles.models[1].opaque), (0, ""));
    }

    #[test]
    fn profiles_follow_summer_time() {
        let mut models = models();
        // 2026-03-29 01:00 UTC.
        let spring = 1_774_746_000;
        models.tick(spring - 10);
        assert_eq!(models.next_change(spring - 10), Some(spring));
        assert!(models.tick(spring) && !models.tick(spring + 1));
        let offsets: Vec<i32> = models.profiles().models.iter().map(|m| m.utc_offset).collect();
        assert_eq!(offsets, [7200, 0]);
    }
}
