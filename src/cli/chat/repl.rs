//! Turn after turn with a user at the other end.

use super::answer::Answer;
use super::command::Command;
use super::error::Error;
use super::input::{Line, Lines};
use super::interrupt::{Doing, Interrupts};
use super::replay;
use super::report;
use super::saved::Saved;
use super::screen::Screen;
use super::state::{Chat, Event};

/// A conversation at a terminal (or with the lines of a pipe).
pub struct Repl<'a> {
    /// The conversation.
    pub chat: &'a mut Chat,
    /// Where answers go.
    pub screen: &'a mut Screen,
    /// What Ctrl-C does.
    pub interrupts: &'a Interrupts,
    /// Where the model came from.
    pub origin: &'a str,
}

impl Repl<'_> {
    /// Reads and answers until the user has enough.
    ///
    /// # Errors
    /// Input or output fails. What goes wrong in a turn is told, and the program goes on.
    pub fn run(&mut self, mut lines: Lines) -> anyhow::Result<()> {
        let prompt = if lines.is_terminal() { "> " } else { "" };
        let mut interrupted = false;
        loop {
            let line = {
                let doing = if lines.is_terminal() { Doing::Editing } else { Doing::Other };
                let _doing = self.interrupts.doing(doing);
                lines.next(prompt)?
            };
            let text = match line {
                Line::End => return Ok(()),
                Line::Interrupted if interrupted => return Ok(()),
                Line::Interrupted => {
                    interrupted = true;
                    self.screen.note("(Ctrl-C again, Ctrl-D or /quit ends the program)");
                    continue;
                }
                Line::Text(text) => text,
            };
            interrupted = false;
            match Command::parse(&text) {
                Ok(Command::Quit) => return Ok(()),
                Ok(command) => self.execute(command)?,
                Err(e) => self.screen.error(&e),
            }
        }
    }

    fn execute(&mut self, command: Command) -> anyhow::Result<()> {
        let _doing = self.interrupts.doing(Doing::Answering);
        match command {
            Command::Nothing | Command::Quit => {}
            Command::Say(text) => self.answer(Some(&text))?,
            Command::Again => self.answer(None)?,
            Command::Help => self.screen.note(&Command::help()),
            Command::Reset => {
                self.chat.reset();
                self.screen.note("[a new conversation]");
            }
            Command::System(system) => {
                let what = if system.is_some() { "set" } else { "removed" };
                self.chat.set_system(system);
                self.screen.note(&format!("[system prompt {what}, from the next message on]"));
            }
            Command::Steps(steps) => {
                let before = self.chat.ran_on();
                let result = self.chat.set_steps(steps);
                self.depth_changed(&before, result);
            }
            Command::Rule(rule) => {
                let before = self.chat.ran_on();
                let result = self.chat.set_rule(rule);
                self.depth_changed(&before, result);
            }
            Command::Decode(strategy) => match self.chat.set_strategy(strategy) {
                Ok(again) => {
                    self.screen.note(&format!("[decoding: {strategy}, for tokens from here on]"));
                    let note = crate::cli::decode_note(self.chat.engine());
                    note.iter().for_each(|note| self.screen.note(&format!("[{note}]")));
                    again.iter().for_each(|&tokens| self.set_up_anew(tokens, None));
                }
                Err(e) => self.failed(&e),
            },
            Command::Temperature(t) => match self.chat.set_temperature(t) {
                Ok(()) => self.screen.note(&format!("[temperature {t}]")),
                Err(e) => self.screen.error(&e),
            },
            Command::Reasoning(reasoning) => {
                self.chat.set_reasoning(reasoning);
                self.screen.note(match reasoning {
                    Some(true) => "[thinking before every answer]",
                    Some(false) => "[no thinking]",
                    None => "[thinking as the chat template has it]",
                });
            }
            Command::ShowSteps(show) => {
                self.screen.set_show_steps(show.unwrap_or(!self.screen.shows_steps()));
                self.screen.note(if self.screen.shows_steps() {
                    "[showing loop steps]"
                } else {
                    "[not showing loop steps]"
                });
                self.legend();
            }
            Command::Stats => self.screen.note(&report::stats(self.chat, self.origin)),
            Command::Save(path) => match Saved::of(self.chat).and_then(|saved| saved.write(&path)) {
                Ok(()) => self.screen.note(&format!("[saved to {}]", path.display())),
                Err(e) => self.screen.error(&e),
            },
            Command::Load(path) => match Saved::read(&path).map_err(Error::from).and_then(|s| self.chat.load(&s)) {
                Ok(notes) => loaded(self.chat, self.screen, &notes),
                Err(e) => self.failed(&e),
            },
        }
        // Behind the answer, which it would otherwise cut in two.
        report::device_note(self.chat).iter().for_each(|line| self.screen.note(line));
        Ok(())
    }

    /// Answers a message, or the last one again.
    fn answer(&mut self, message: Option<&str>) -> anyhow::Result<()> {
        match answer(self.chat, self.screen, message) {
            Ok(answer) => {
                report::governor_notes(self.chat).iter().for_each(|line| self.screen.note(line));
                let lines = [report::end_line(&answer, self.chat), Some(report::answer_line(&answer))];
                lines.iter().flatten().for_each(|line| self.screen.note(line));
            }
            Err(e @ Error::Show(_)) => return Err(e.into()),
            Err(e) => {
                self.screen.end_line()?;
                self.failed(&e);
            }
        }
        Ok(())
    }

    /// Tells of another depth. `before` is what the tokens that are held ran on until then.
    fn depth_changed(&self, before: &str, result: Result<Option<usize>, Error>) {
        match result {
            Ok(again) => {
                let (rule, limit) = (self.chat.settings().rule, self.chat.depth_limit());
                self.screen.note(&format!("[{rule}, up to {limit} steps, for tokens from here on]"));
                if let Some(note) = self.chat.too_deep("/") {
                    self.screen.note(&format!("[{note}]"));
                }
                if let Some(tokens) = again {
                    self.set_up_anew(tokens, replay::doubt(before, &self.chat.ran_on()));
                }
                self.legend();
            }
            Err(e) => self.failed(&e),
        }
    }

    /// Tells that there is another session.
    fn set_up_anew(&self, tokens: usize, doubt: Option<&str>) {
        let shape = self.chat.engine().session().kv_shape();
        self.screen.note(&format!(
            "[the KV cache was set up anew with {} loop slots and {} positions; {tokens} tokens were run again{}]",
            shape.slots,
            shape.context,
            doubt.filter(|_| tokens > 0).map_or(String::new(), |doubt| format!(": {doubt}"))
        ));
    }

    /// A legend, if colours mean something.
    pub fn legend(&self) {
        if let Some(legend) = self.screen.legend(self.chat.depth_limit()) {
            self.screen.raw_note(&legend);
        }
    }

    fn failed(&self, e: &Error) {
        if e.is_cancelled() {
            self.screen.note("[stopped; nothing has changed]");
        } else {
            self.screen.error(e);
        }
    }
}

/// Says that a conversation has been loaded.
pub fn loaded(chat: &Chat, screen: &Screen, notes: &[String]) {
    let (rule, limit) = (chat.settings().rule, chat.depth_limit());
    let messages = chat.conversation().turns.len();
    screen.note(&format!(
        "[loaded {messages} messages, {} tokens; {rule}, up to {limit} steps]",
        chat.engine().held().len()
    ));
    notes.iter().for_each(|n| screen.note(&format!("[note: {n}]")));
}

/// Answers a message (or the last one again) on the screen.
///
/// # Errors
/// As [`Chat::ask`].
pub fn answer(chat: &mut Chat, screen: &mut Screen, message: Option<&str>) -> Result<Answer, Error> {
    let limit = chat.depth_limit();
    let mut show = |event: Event<'_>| match event {
        Event::Dropped(n) => {
            screen.note(&report::dropped_line(n));
            Ok(())
        }
        Event::Token(token) => screen.token(token, limit),
        Event::Rest(text) => screen.text(text),
    };
    let answer = match message {
        Some(text) => chat.ask(text, &mut show)?,
        None => chat.answer_again(&mut show)?,
    };
    screen.end_line().map_err(Error::Show)?;
    Ok(answer)
}
