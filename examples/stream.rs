//! Load a model, ask it something through its chat template, stream the answer, and show how deep each token went.
//!
//! Run with `cargo run --release --example stream -- models/huginn-small-q4_k_m.gguf 'What is 4 + 5?'`

use rdt::arch::{self, Load};
use rdt::exit::ExitRule;
use rdt::generate::{Engine, SamplerConfig};
use rdt::model::{InitialState, Session, SessionOptions};
use rdt::text::{self, Message, Role, StreamDecoder, Template, Tokenizer};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, question] = args.as_slice() else {
        return Err("usage: stream MODEL.gguf QUESTION".into());
    };

    // The model is immutable and may serve any number of sessions.
    let model = Arc::new(arch::open(Path::new(path), Load::Map)?);
    let tokenizer = Tokenizer::from_gguf(model.metadata())?;
    let template = Template::of_model(model.metadata(), &tokenizer, model.config().prefix_lm)?;
    let mut stops = text::stop_tokens(model.metadata(), &tokenizer)?;
    stops.extend(template.stop_token(&tokenizer));

    // A token leaves the loop when its latent state has settled, at the latest after 16 steps.
    let rule: ExitRule = "acceleration:0.05,hits=2,max=16".parse()?;
    let options = SessionOptions { steps: rule.max_steps(), initial: InitialState::Zeros, ..SessionOptions::default() };
    let session = Session::new(Arc::clone(&model), &options)?;
    let mut engine = Engine::new(session, rule, None, SamplerConfig::greedy(), tokenizer.vocabulary())?;

    let messages = [Message::new(Role::User, question.as_str())];
    engine.prompt(&template.prompt(&tokenizer, &messages, true, None)?)?;

    let mut decoder = StreamDecoder::new();
    let mut depths = Vec::new();
    while let Some(step) = engine.next_token()? {
        if stops.contains(&step.token) {
            break;
        }
        depths.push(step.steps);
        print!("{}", decoder.push(&tokenizer, step.token)?);
        std::io::stdout().flush()?;
    }
    println!("{}", decoder.flush());
    println!("loop steps per token: {depths:?}");
    Ok(())
}
