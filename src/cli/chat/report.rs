//! What is told about a session and its answers, in words and as JSON.

use super::answer::{Answer, Depths, End, per_second};
use super::saved::{ModelId, WrittenSettings};
use super::state::Chat;
use crate::cli::{Governor, acceptance_words, decode_json, decode_words, device_words, human_bytes};
use crate::generate::{DecodeStats, Strategy};
use serde_json::{Value, json};

/// One line: the model and everything that decides how it runs.
pub fn headline(chat: &Chat, origin: &str) -> String {
    let session = chat.engine().session();
    let (shape, steps) = (session.kv_shape(), session.steps());
    let name = match chat.model().config().name.as_str() {
        "" => chat.model().config().architecture.as_str(),
        name => name,
    };
    let slots = if shape.slots < steps { format!("{} of {steps}", shape.slots) } else { format!("all {steps}") };
    format!(
        "{name} ({origin}); KV {}, {} positions, {slots} loop slots, {}; {} up to {} steps; {}; template: {} [{}]",
        shape.ty,
        shape.context,
        human_bytes(shape.bytes),
        chat.settings().rule,
        chat.depth_limit(),
        device_words(session),
        chat.template().kind(),
        chat.template().fingerprint(),
    )
}

/// How a model that was trained with prefixes is asked, and what its publishers do not define.
pub fn prefix_line(chat: &Chat) -> Option<String> {
    if !chat.model().config().prefix_lm {
        return None;
    }
    Some(match chat.condition() {
        Some(condition) => format!(
            "[a prefix model: each prompt is read in both directions, under the condition {condition} (--condition). It was \
             published for single questions: how a system prompt or a second question is put to it is not defined; here the \
             one becomes part of the first question, and the other a prefix of its own behind the answers before it]"
        ),
        None => {
            "[a prefix model: each prompt is read in both directions, a later one also all that was said before it]"
                .into()
        }
    })
}

fn depths(d: &Depths) -> String {
    format!("{:.2} loop steps ({}-{})", d.mean(), d.min, d.max)
}

/// One line about an answer.
pub fn answer_line(answer: &Answer) -> String {
    let d = answer.depths();
    if d.tokens == 0 {
        return "[no tokens]".to_owned();
    }
    format!(
        "[{} token{}, {}, {}{:.1} tokens/s]",
        d.tokens,
        if d.tokens == 1 { "" } else { "s" },
        depths(&d),
        decode_words(&answer.decode).map_or(String::new(), |words| words + ", "),
        per_second(d.tokens, answer.time),
    )
}

/// What the governor has to say that was not said yet.
pub fn governor_notes(chat: &mut Chat) -> Vec<String> {
    let notes = chat.governor_mut().map(Governor::take_notes).unwrap_or_default();
    notes.into_iter().map(|note| format!("[governor: {note}]")).collect()
}

/// That the session has left its device, if that was not said yet.
pub fn device_note(chat: &mut Chat) -> Option<String> {
    chat.take_notice().map(|notice| format!("[{notice}]"))
}

/// Why an answer ended, where the user should know.
pub fn end_line(answer: &Answer, chat: &Chat) -> Option<String> {
    match answer.end {
        End::Stop => None,
        End::Length => Some(format!("[stopped after {} tokens, as -n asks]", answer.tokens.len())),
        End::Context => Some(format!(
            "[the context of {} tokens is full, so the answer ends here; the next message will drop old turns, /reset all]",
            chat.engine().session().kv_shape().context
        )),
        End::Cancelled if answer.tokens.is_empty() => Some("[stopped before the first token: not kept]".to_owned()),
        End::Cancelled => Some("[stopped]".to_owned()),
    }
}

/// That old turns have been left out.
pub fn dropped_line(n: usize) -> String {
    let turns = if n == 1 { "the oldest turn was".to_owned() } else { format!("the {n} oldest turns were") };
    format!("[{turns} dropped to make room in the context]")
}

/// The answer of `/stats`.
pub fn stats(chat: &Chat, origin: &str) -> String {
    let (t, s) = (chat.totals(), &chat.settings().sampler);
    let engine = chat.engine();
    let mut lines = vec![headline(chat, origin)];
    let how = if s.temperature == 0.0 {
        "greedy".to_owned()
    } else {
        format!(
            "temperature {}, top-k {}, top-p {}, min-p {}, seed {}",
            s.temperature, s.top_k, s.top_p, s.min_p, s.seed
        )
    };
    lines.push(format!("sampling: {how}, repeat penalty {} over {}", s.repeat_penalty, s.repeat_last_n));
    lines.push(format!(
        "context: {} of {} tokens held, {} messages",
        engine.held().len(),
        engine.session().kv_shape().context,
        chat.conversation().turns.len()
    ));
    lines.push(format!(
        "prompts: {} tokens run, {} reused, {:.1} tokens/s",
        t.prompt,
        t.reused,
        per_second(t.prompt, t.prompt_time)
    ));
    lines.push(format!(
        "answers: {}, {} tokens, {}, {:.1} tokens/s",
        t.answers,
        t.depths.tokens,
        depths(&t.depths),
        per_second(t.depths.tokens, t.time)
    ));
    let strategy = chat.settings().strategy;
    if let (true, Some(words)) = (strategy != Strategy::Plain, decode_words(&t.decode)) {
        let plain = engine.plain_tokens_per_second();
        let plain = plain.map(|n| format!("; one token after the other would make some {n:.1} tokens/s"));
        lines.push(format!("decoding: {strategy}, {words}{}", plain.unwrap_or_default()));
        if !t.decode.guesses.is_empty() {
            let DecodeStats { guessed, dropped, .. } = t.decode;
            lines.push(format!("{guessed} rows entered on a guess, {dropped} were dropped"));
            lines.push(format!("guesses that came true: {}", acceptance_words(&t.decode)));
        }
    }
    lines.extend(chat.governor().map(Governor::lines).unwrap_or_default());
    lines.join("\n")
}

/// Everything about one answer.
pub fn json(chat: &Chat, answer: &Answer) -> Value {
    let session = chat.engine().session();
    let (shape, d) = (session.kv_shape(), answer.depths());
    let tokens: Vec<Value> =
        answer.tokens.iter().map(|t| json!({"id": t.id, "text": t.text, "steps": t.steps})).collect();
    let prompt_mean = if answer.prompt.run == 0 { 0.0 } else { answer.prompt.steps as f64 / answer.prompt.run as f64 };
    json!({
        "answer": answer.text,
        "end": answer.end.name(),
        "tokens": tokens,
        "mean_steps": d.mean(),
        "min_steps": d.min,
        "max_steps": d.max,
        "seconds": answer.time.as_secs_f64(),
        "tokens_per_second": per_second(d.tokens, answer.time),
        "dropped_turns": answer.dropped,
        "prompt": {
            "tokens": answer.prompt.run + answer.prompt.reused,
            "reused": answer.prompt.reused,
            "mean_steps": prompt_mean,
            "seconds": answer.prompt_time.as_secs_f64(),
            "tokens_per_second": per_second(answer.prompt.run as u64, answer.prompt_time),
        },
        "model": ModelId::of(chat.model()),
        "settings": WrittenSettings::of(chat),
        "depth_limit": chat.depth_limit(),
        "decode": decode_json(chat.engine(), &answer.decode),
        "kv": {"type": shape.ty.name(), "context": shape.context, "slots": shape.slots, "bytes": shape.bytes},
        "device": chat.ran_on(),
        "threads": session.threads(),
        "governor": chat.governor().map(Governor::json),
        "isa": chat.model().kernels().isa.name(),
        "template": {"kind": chat.template().kind().to_string(), "fingerprint": chat.template().fingerprint()},
    })
}
