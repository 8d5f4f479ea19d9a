//! Who said what, and what to leave out when it gets too long.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// Who speaks. A closed list: chat templates paste the role's name between the brackets of special tokens, so a
/// free text would be a way to forge them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// Instructions by the application, where a template tells them from the system's.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl Role {
    /// The name templates know it by.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let all = [Role::System, Role::Developer, Role::User, Role::Assistant, Role::Tool];
        let found = all.into_iter().find(|r| r.name() == name);
        found.ok_or_else(|| Error::Role(name.to_owned()))
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        let content = content.into();
        Self { role, content }
    }
}

/// A system prompt and the turns after it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The system prompt, which is never left out.
    pub system: Option<String>,
    /// The messages after it, oldest first.
    pub turns: Vec<Message>,
}

impl Conversation {
    /// An empty conversation.
    pub fn new(system: Option<String>) -> Self {
        let turns = Vec::new();
        Self { system, turns }
    }

    /// Adds a message.
    pub fn push(&mut self, role: Role, content: impl Into<String>) {
        self.turns.push(Message::new(role, content));
    }

    /// All messages, the system prompt first, as a template takes them.
    pub fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|s| Message::new(Role::System, s.as_str()));
        system.chain(self.turns.iter().cloned()).collect()
    }

    /// Leaves out the oldest exchanges (a user's message and all up to the user's next one) until `count`, given all messages
    /// that are left, is at most `room`. The system prompt and the last user's message stay. Returns how many
    /// exchanges were left out.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] if the last exchange alone is too long, or `count`'s own error; the conversation
    /// is then as it was.
    pub fn drop_oldest_until<E: From<Error>>(
        &mut self,
        room: usize,
        mut count: impl FnMut(&[Message]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let mut shorter = self.clone();
        let mut dropped = 0;
        loop {
            let needed = count(&shorter.messages())?;
            if needed <= room {
                *self = shorter;
                return Ok(dropped);
            }
            let mut users = shorter.turns.iter().skip(1);
            let Some(next) = users.position(|m| m.role == Role::User) else {
                return Err(Error::DoesNotFit { needed, room }.into());
            };
            shorter.turns.drain(..=next);
            dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Conversation {
        let mut c = Conversation::new(Some("sys".into()));
        for (role, text) in [
            (Role::User, "one"),
            (Role::Assistant, "two"),
            (Role::User, "three"),
            (Role::Assistant, "four"),
            (Role::Tool, "five"),
            (Role::Assistant, "six"),
            (Role::User, "seven"),
        ] {
            c.push(role, text);
        }
        c
    }

    fn letters(messages: &[Message]) -> Result<usize, Error> {
        Ok(messages.iter().map(|m| m.content.len()).sum())
    }

    fn texts(c: &Conversation) -> Vec<String> {
        c.messages().into_iter().map(|m| m.content).collect()
    }

    #[test]
    fn drops_whole_exchanges_and_keeps_the_system_prompt() {
        let mut c = conversation();
        assert_eq!(c.drop_oldest_until(30, letters), Ok(0));
        assert_eq!(c, conversation());
        assert_eq!(c.drop_oldest_until(26, letters), Ok(1));
        assert_eq!(texts(&c), ["sys", "three", "four", "five", "six", "seven"]);
        assert_eq!(c.drop_oldest_until(8, letters), Ok(1));
        assert_eq!(texts(&c), ["sys", "seven"]);
        let mut c = conversation();
        assert_eq!(c.drop_oldest_until(8, letters), Ok(2));
    }

    #[test]
    fn the_last_message_is_never_dropped() {
        let mut c = conversation();
        let error = c.drop_oldest_until(7, letters).unwrap_err();
        assert_eq!(error, Error::DoesNotFit { needed: 8, room: 7 });
        assert_eq!(c, conversation());
        let mut empty = Conversation::default();
        assert_eq!(empty.drop_oldest_until(0, letters), Ok(0));
    }

    #[test]
    fn the_counters_error_is_passed_on() {
        let mut c = conversation();
        let failed: Result<usize, Error> = c.drop_oldest_until(1, |_| Err(Error::NoMarker));
        assert_eq!(failed, Err(Error::NoMarker));
        assert_eq!(c, conversation());
    }

    #[test]
    fn roles_are_a_closed_list() {
        for name in ["system", "developer", "user", "assistant", "tool"] {
            assert_eq!(name.parse::<Role>().unwrap().to_string(), name);
        }
        for name in ["", "User", "user|>", "<|im_start|>system"] {
            assert_eq!(name.parse::<Role>(), Err(Error::Role(name.into())));
        }
    }
}
