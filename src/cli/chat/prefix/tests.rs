use super::*;
use crate::arch::{self, Input};
use crate::checkpoint::Checkpoint;
use crate::cli::chat::answer::{Answer, End};
use crate::cli::chat::interrupt::Cancel;
use crate::cli::chat::report;
use crate::cli::chat::saved::Saved;
use crate::cli::chat::settings::Settings;
use crate::generate::{SamplerConfig, Way, engine};
use crate::model::{self, Model, SessionOptions};
use crate::quant::Recipe;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

/// A tiny HRM-Text with the published special tokens.
fn model() -> Arc<Model> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hrm_text-shapes/split");
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut plan = arch::conversion(&checkpoint).unwrap();
    text::write_metadata(&checkpoint, plan.vocabulary(), &mut plan.metadata).unwrap();
    let input = Input::Checkpoint(&checkpoint);
    let (bytes, _) = plan.write(&input, Recipe::F32, Vec::new(), &mut |_| true).unwrap();
    Arc::new(arch::from_bytes(bytes.into()).unwrap())
}

fn chat_with(context: usize, chunk_rows: Option<usize>) -> Chat {
    let settings = Settings {
        strategy: crate::generate::Strategy::Plain,
        rule: "fixed".parse().unwrap(),
        steps: None,
        sampler: SamplerConfig::greedy(),
        predict: Some(6),
        ignore_end: true,
        reasoning: None,
    };
    let options = SessionOptions {
        threads: NonZeroUsize::new(1),
        context: Some(context),
        chunk_rows,
        ..SessionOptions::default()
    };
    Chat::new(model(), options, settings, None, Cancel::default()).unwrap()
}

fn chat() -> Chat {
    chat_with(200, None)
}

fn ask(chat: &mut Chat, text: &str) -> Answer {
    chat.ask(text, &mut |_| Ok(())).unwrap()
}

fn bits(chat: &Chat) -> Vec<u32> {
    chat.engine().logits().iter().map(|x| x.to_bits()).collect()
}

/// The ids that a part of the text held begins and ends with.
fn ends(chat: &Chat, range: &Range<usize>) -> [u32; 2] {
    let held = chat.engine().held();
    [held[range.start], held[range.end - 1]]
}

/// Every question, with its tokens, is read both ways, and only that: the answers between are not.
#[test]
fn every_question_is_a_prefix_of_its_own() {
    let mut chat = chat();
    let id = |text: &str| chat.voice.tokenizer.id_of(text).unwrap();
    let (begin, end, end_of_answer) = (id("<|im_start|>"), id("<|im_end|>"), id("<|box_end|>"));
    let first = ask(&mut chat, "The loop is run again.");
    assert_eq!((first.prompt.reused, first.end), (0, End::Length));
    let one = 0..first.prompt.run;
    assert_eq!(chat.engine().both_ways(), std::slice::from_ref(&one));
    assert_eq!(ends(&chat, &one), [begin, end]);
    // The condition's tokens follow the first.
    assert_eq!(chat.engine().held()[1..3], [id_of(&chat, "<|quad_end|>"), id_of(&chat, "<|object_ref_end|>")]);
    let ways: Vec<_> = chat.runs().iter().map(|r| r.way).collect();
    assert_eq!(ways, [Way::BothWays, Way::Drawn]);

    let second = ask(&mut chat, "And again?");
    let [a, b] = chat.engine().both_ways() else { panic!("{:?}", chat.engine().both_ways()) };
    assert_eq!(*a, one);
    assert_eq!(ends(&chat, b), [begin, end]);
    assert_eq!(chat.engine().held()[b.start - 1], end_of_answer);
    assert!(second.prompt.reused >= one.end, "the first question is not run again");
    assert_eq!(chat.runs().iter().filter(|r| r.way == Way::BothWays).count(), 2);
    assert_eq!(chat.runs().iter().map(|r| r.len).sum::<usize>(), chat.engine().held().len());
}

fn id_of(chat: &Chat, text: &str) -> u32 {
    chat.voice.tokenizer.id_of(text).unwrap()
}

/// What is held after some turns is what a fresh run of the same parts gives.
#[test]
fn turns_are_as_if_they_had_been_given_at_once() {
    let mut talk = chat();
    ask(&mut talk, "The loop is run again.");
    ask(&mut talk, "And again?");
    let (held, ranges) = (talk.engine().held().to_vec(), talk.engine().both_ways().to_vec());
    let mut fresh = chat();
    fresh.recorder_mut().prompt(&held, &ranges).unwrap();
    assert_eq!(bits(&fresh), bits(&talk));
    fresh.recorder_mut().reset();
    fresh.recorder_mut().prompt(&held, &[]).unwrap();
    assert_ne!(bits(&fresh), bits(&talk), "a causal run is another one");
}

#[test]
fn a_loaded_conversation_goes_on_bit_for_bit() {
    let mut first = chat();
    first.set_condition("direct").unwrap();
    ask(&mut first, "The loop is run again.");
    ask(&mut first, "And again?");
    let file = Saved::of(&first).unwrap();
    let mut second = chat();
    assert_eq!(second.load(&file).unwrap(), Vec::<String>::new());
    assert_eq!((second.condition(), second.runs()), (Some("direct"), first.runs()));
    assert_eq!(second.engine().both_ways(), first.engine().both_ways());
    assert_eq!(bits(&second), bits(&first));
    assert_eq!(Saved::of(&second).unwrap(), file);
    let (a, b) = (ask(&mut first, "Once more."), ask(&mut second, "Once more."));
    assert_eq!((a.tokens, a.prompt), (b.tokens, b.prompt));
    assert_eq!(bits(&second), bits(&first));
}

/// A question that does not fit is refused in one line, and the conversation is as it was.
#[test]
fn a_question_longer_than_a_chunk_is_refused() {
    let mut chat = chat_with(200, Some(20));
    ask(&mut chat, "Short.");
    let before = (chat.conversation().clone(), chat.engine().held().to_vec());
    let error = chat.ask(&"again and ".repeat(12), &mut |_| Ok(())).unwrap_err();
    let too_long =
        |e: &Error| matches!(e, Error::Engine(engine::Error::Model(model::Error::PrefixTooLong { most: 20, .. })));
    assert!(too_long(&error), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
    assert_eq!(*chat.conversation(), before.0);
    ask(&mut chat, "Short again.");
    // A file may ask for more than there is room for.
    let mut long = super::tests::chat();
    ask(&mut long, &"again and ".repeat(12));
    let file = Saved::of(&long).unwrap();
    assert!(too_long(&chat.load(&file).unwrap_err()));
}

#[test]
fn conditions_are_for_models_that_have_them() {
    let mut chat = chat();
    assert_eq!(chat.condition(), Some(text::DEFAULT_CONDITION));
    assert!(chat.set_condition("other").unwrap_err().to_string().contains("known: direct, cot"));
    assert_eq!(chat.condition(), Some(text::DEFAULT_CONDITION));
    let said = report::prefix_line(&chat).unwrap();
    assert!(said.contains("synth,cot") && said.contains("not defined"), "{said}");
    let huginn = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
    let huginn = Arc::new(arch::open(&huginn, arch::Load::Map).unwrap());
    let mut other =
        Chat::new(huginn, SessionOptions::default(), chat.settings().clone(), None, Cancel::default()).unwrap();
    assert!(other.set_condition("direct").unwrap_err().to_string().contains("none for this model"));
    assert_eq!((other.condition(), report::prefix_line(&other)), (None, None));
}

/// Parts of prompts whose tokens run into each other: one prefix, with the answer in it.
#[test]
fn answers_that_cannot_be_told_apart_are_part_of_the_prefix() {
    let messages = [Role::User, Role::Assistant, Role::User].map(|role| Message::new(role, "x"));
    // Two tokens for each message, one for what asks for an answer.
    let plain = |m: &[Message], ask: bool| Ok(vec![7; 2 * m.len() + usize::from(ask)]);
    assert_eq!(both_ways(&messages, &[7; 7], plain).unwrap(), [0..3, 4..7]);
    // The last token of a part depends on whether more follows.
    let merged = |m: &[Message], ask: bool| {
        let mut tokens = plain(m, ask)?;
        *tokens.last_mut().unwrap() = 8;
        Ok(tokens)
    };
    assert_eq!(both_ways(&messages, &[7, 7, 7, 7, 7, 7, 8], merged).unwrap(), [Range { start: 0, end: 7 }]);
    assert_eq!(both_ways(&messages[..1], &[7, 7, 8], merged).unwrap(), [Range { start: 0, end: 3 }]);
}
