//! Lines that begin with a slash.

use super::Reasoning;
use crate::exit::ExitRule;
use crate::generate::Strategy;
use clap::ValueEnum;
use std::path::PathBuf;

/// A command and what it does, for `/help` and for completion.
pub const COMMANDS: [(&str, &str, &str); 15] = [
    ("/help", "", "this list"),
    ("/reset", "", "forget the conversation, keep the system prompt and the settings"),
    ("/regen", "", "take the last answer back and make another one"),
    ("/system", "[TEXT]", "change the system prompt; without TEXT remove it"),
    ("/steps", "N|default", "loop steps at most"),
    ("/exit-rule", "RULE", "when a token leaves the loop, such as acceleration:0.05,hits=2 or fixed:8"),
    ("/decode", "STRATEGY", "how tokens come out of the loop: plain, pipeline, speculative or wavefront"),
    ("/temp", "T", "temperature; 0 takes the most likely token every time"),
    ("/reasoning", "on|off|auto", "thinking before the answer"),
    ("/show-steps", "[on|off]", "show how deep each token went"),
    ("/stats", "", "settings in force, and what the answers took"),
    ("/save", "FILE", "write the conversation to a file"),
    ("/load", "FILE", "go on with a saved conversation"),
    ("/quit", "", "end the program, as Ctrl-D does"),
    ("/exit", "", "the same"),
];

/// What a line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Nothing but white space.
    Nothing,
    /// Something to say to the model.
    Say(String),
    /// List the commands.
    Help,
    /// Forget the conversation.
    Reset,
    /// Answer again.
    Again,
    /// Change or remove the system prompt.
    System(Option<String>),
    /// Change the depth, or go back to the default.
    Steps(Option<usize>),
    /// Change the exit rule.
    Rule(ExitRule),
    /// Change the decoding strategy.
    Decode(Strategy),
    /// Change the temperature.
    Temperature(f32),
    /// Turn thinking on or off, or leave it to the template.
    Reasoning(Option<bool>),
    /// Show depths, or do not; `None` is the other way round.
    ShowSteps(Option<bool>),
    /// Tell settings and totals.
    Stats,
    /// Write a file.
    Save(PathBuf),
    /// Read a file.
    Load(PathBuf),
    /// End.
    Quit,
}

/// Why a line is not a command although it looks like one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such command.
    #[error("there is no command {0}; /help lists them, and two slashes at the start send a line that begins with one")]
    Unknown(String),
    /// An argument is missing, one too many, or malformed.
    #[error("{command}: {detail}")]
    Argument {
        /// The command.
        command: &'static str,
        /// What is wrong.
        detail: String,
    },
}

impl Command {
    /// Reads a line.
    ///
    /// # Errors
    /// A line with one slash at its start that is no known command, or one with a wrong argument.
    pub fn parse(line: &str) -> Result<Self, Error> {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            return Ok(Self::Nothing);
        }
        if !trimmed.starts_with('/') {
            return Ok(Self::Say(line.to_owned()));
        }
        if let Some(rest) = trimmed.strip_prefix("//") {
            return Ok(Self::Say(format!("/{rest}")));
        }
        let (name, argument) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
        let argument = argument.trim();
        let Some(&(command, usage, _)) = COMMANDS.iter().find(|(c, _, _)| *c == name) else {
            return Err(Error::Unknown(name.to_owned()));
        };
        let wrong = |detail: String| Error::Argument { command, detail };
        if usage.is_empty() && !argument.is_empty() {
            return Err(wrong("takes no argument".to_owned()));
        }
        if argument.is_empty() && !usage.is_empty() && !usage.starts_with('[') {
            return Err(wrong(format!("expected {usage}")));
        }
        Ok(match command {
            "/help" => Self::Help,
            "/reset" => Self::Reset,
            "/regen" => Self::Again,
            "/system" => Self::System((!argument.is_empty()).then(|| argument.to_owned())),
            "/steps" if argument == "default" => Self::Steps(None),
            "/steps" => Self::Steps(Some(crate::cli::positive(argument).map_err(wrong)?)),
            "/exit-rule" => Self::Rule(argument.parse().map_err(|e: crate::exit::Error| wrong(e.to_string()))?),
            "/decode" => {
                Self::Decode(argument.parse().map_err(|e: crate::generate::decode::ParseError| wrong(e.to_string()))?)
            }
            "/temp" => Self::Temperature(argument.parse().map_err(|_| wrong("expected a number".to_owned()))?),
            "/reasoning" => {
                let expected = |_| wrong("expected on, off or auto".to_owned());
                Self::Reasoning(Reasoning::from_str(argument, false).map_err(expected)?.switch())
            }
            "/show-steps" => Self::ShowSteps(match argument {
                "" => None,
                "on" => Some(true),
                "off" => Some(false),
                _ => return Err(wrong("expected on or off".to_owned())),
            }),
            "/stats" => Self::Stats,
            "/save" => Self::Save(argument.into()),
            "/load" => Self::Load(argument.into()),
            _ => Self::Quit,
        })
    }

    /// The list of all commands, for people.
    pub fn help() -> String {
        let mut text = String::new();
        for (command, usage, meaning) in COMMANDS {
            let left = format!("{command} {usage}");
            text.push_str(&format!("  {left:<22} {meaning}\n"));
        }
        text + "  A backslash at the end of a line goes on in the next one. Ctrl-C stops an answer."
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Command {
        Command::parse(line).unwrap()
    }

    #[test]
    fn lines_become_commands() {
        assert_eq!(parse(""), Command::Nothing);
        assert_eq!(parse(" \t "), Command::Nothing);
        assert_eq!(parse(" hello "), Command::Say(" hello ".into()));
        assert_eq!(parse("//etc is a folder"), Command::Say("/etc is a folder".into()));
        assert_eq!(parse("/quit"), Command::Quit);
        assert_eq!(parse("/exit "), Command::Quit);
        assert_eq!(parse("/steps 7"), Command::Steps(Some(7)));
        assert_eq!(parse("/steps default"), Command::Steps(None));
        assert_eq!(parse("/exit-rule fixed:3"), Command::Rule("fixed:3".parse().unwrap()));
        assert_eq!(parse("/decode pipeline"), Command::Decode(Strategy::PIPELINE));
        assert_eq!(parse("/temp 0.5"), Command::Temperature(0.5));
        assert_eq!(parse("/reasoning on"), Command::Reasoning(Some(true)));
        assert_eq!(parse("/reasoning auto"), Command::Reasoning(None));
        assert_eq!(parse("/show-steps"), Command::ShowSteps(None));
        assert_eq!(parse("/show-steps off"), Command::ShowSteps(Some(false)));
        assert_eq!(parse("/system"), Command::System(None));
        assert_eq!(parse("/system Be  brief."), Command::System(Some("Be  brief.".into())));
        assert_eq!(parse("/save a file.json"), Command::Save("a file.json".into()));
        assert_eq!(parse("/load\tx"), Command::Load("x".into()));
    }

    #[test]
    fn wrong_lines_are_refused() {
        assert!(matches!(Command::parse("/frob"), Err(Error::Unknown(c)) if c == "/frob"));
        assert!(matches!(Command::parse("/"), Err(Error::Unknown(_))));
        for line in [
            "/steps",
            "/steps 0",
            "/steps -1",
            "/steps x",
            "/exit-rule",
            "/exit-rule acceleration:NaN",
            "/decode",
            "/decode fast",
            "/temp warm",
            "/save",
            "/load",
            "/quit now",
            "/reset 1",
            "/reasoning",
            "/reasoning maybe",
            "/show-steps maybe",
        ] {
            let error = Command::parse(line).unwrap_err();
            let Error::Argument { command, .. } = error else { panic!("{line}: {error}") };
            assert!(line.starts_with(command), "{line}");
        }
    }

    #[test]
    fn every_command_is_read() {
        for (command, usage, _) in COMMANDS {
            let argument = match command {
                "/exit-rule" => "fixed",
                "/decode" => "plain",
                "/reasoning" => "off",
                _ if usage.is_empty() => "",
                _ => "1",
            };
            let line = if command == "/show-steps" { command.to_owned() } else { format!("{command} {argument}") };
            assert!(!matches!(parse(&line), Command::Say(_) | Command::Nothing), "{line}");
            assert!(Command::help().contains(command));
        }
    }
}
