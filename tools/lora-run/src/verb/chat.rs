//! `chat`: a conversation, kept in the KV cache.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use lora_runtime::format::Task;
use lora_runtime::{Session, Set};
use serde_json::{Value as Json, json};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::check_task;
use crate::cli::{ModelArgs, SamplingArgs};
use crate::exit::one_line;
use crate::generation::{Continuation, Ending, Request, Settings, continue_prompt};
use crate::load::{Host, Room, positions};
use crate::output::{Out, interactive, note};
use crate::template::ChatTemplate;
use crate::text::prompt_ids;

/// Arguments of `chat`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lora-run chat model.lpk
  lora-run chat model.lpk --system 'You are a pirate.' --temp 0.7 --ctx 4096
  lora-run chat base.lpk --adapter pirate.lpk

Commands in the chat: /help /reset /system TEXT /adapter [NAME[=W] …|off] /exit. Ctrl-C stops an answer, at the prompt it ends the chat.")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// System message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
}

/// Positions that a conversation may take, unless `--ctx` says otherwise.
const CONTEXT: u32 = 2048;
/// The share of the context that stays free for an answer.
const ANSWER_SHARE: usize = 4;

const HELP: &str = "\
/help          this list
/reset         forget the conversation
/system TEXT   set the system message and forget the conversation; without TEXT, none
/adapter NAME  go on with this adapter (NAME=W with a weight; several at once; off for the base alone);
               without NAME, list them
/exit          end (also the end of input)
Ctrl-C stops an answer.";

/// Runs the verb.
///
/// # Errors
/// The model does not chat; a message that fails is reported and the chat goes on.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::open(&args.model)?;
    let model = host.model()?;
    check_task(&model, &[Task::CausalLm])?;
    let template = ChatTemplate::of(&model)?;
    if args.sampling.beams.is_some() {
        bail!(
            "a chat shows its text as it comes, and beam search only has it at the end: use `lora-run generate --chat --beams`"
        );
    }
    let settings = Settings::new(&args.sampling, &model)?;
    let context = host.context(&model, CONTEXT)?;
    let mut config = host.config(&model, context, host.chunk().min(context), 1);
    config.adapters = host.library_needs(&model)?;
    let mut room = Room::default();
    let session = host.session(model, config, &mut room)?;
    let mut chat = Chat {
        host: &host,
        session,
        template,
        settings,
        messages: Vec::new(),
        cache: Vec::new(),
        interrupts: Interrupts::install()?,
        out: Out::new(),
    };
    chat.set_system(args.system.as_deref().unwrap_or(""));
    let people = interactive();
    if people {
        let (limit, level) = (positions(&model), host.kernels.level().name());
        note(&format!(
            "{context} of {limit} positions, {level}, {} threads. /help lists the commands.",
            host.threads()
        ));
    }
    let load = host.since_start();
    let mut input = std::io::stdin().lock();
    let mut line = String::new();
    loop {
        if people {
            let _ = std::io::stderr().write_all(b"> ");
        }
        line.clear();
        chat.interrupts.idle();
        if input.read_line(&mut line).context("reading standard input")? == 0 {
            return Ok(());
        }
        chat.interrupts.busy();
        let text = line.trim();
        if text.is_empty() {
            continue;
        }
        match text.strip_prefix('/') {
            Some(command) => {
                if !chat.command(command) {
                    return Ok(());
                }
            }
            None => match chat.answer(text) {
                Ok(c) if people => note(&format!("({})", c.summary(load))),
                Ok(_) => {}
                Err(e) => note(&format!("error: {}", one_line(&e))),
            },
        }
    }
}

struct Chat<'h> {
    host: &'h Host,
    session: Session<'h>,
    template: ChatTemplate,
    settings: Settings<'h>,
    messages: Vec<Json>,
    /// The tokens that the KV cache holds.
    cache: Vec<u32>,
    interrupts: Interrupts,
    out: Out,
}

impl Chat<'_> {
    /// Whether the chat goes on.
    fn command(&mut self, command: &str) -> bool {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match name {
            "exit" | "quit" => return false,
            "help" => note(HELP),
            "reset" => {
                self.messages.retain(|m| m["role"] == "system");
                note("(forgotten)");
            }
            "system" => {
                self.set_system(rest.trim());
                note("(system message set, conversation forgotten)");
            }
            "adapter" => self.adapter(rest.trim()),
            _ => note(&format!("/{name} is not a command; /help lists them")),
        }
        true
    }

    /// Chooses adapters for what follows; the conversation stays, and is read again where they change its keys.
    fn adapter(&mut self, list: &str) {
        if list.is_empty() {
            let names: Vec<&str> = self.host.library().map(|f| f.name.as_str()).collect();
            return note(&match names.as_slice() {
                [] => "(there are no adapters: start with --adapter FILE, or with a bundle)".to_owned(),
                names => format!("({}; off for the base alone)", names.join(", ")),
            });
        }
        let set = if list == "off" { Ok(Set::BASE) } else { self.host.choose(list) };
        match set.and_then(|set| Ok(self.session.select(set)?)) {
            Ok(()) => note(&format!("(adapter: {list})")),
            Err(e) => note(&format!("error: {}", one_line(&e))),
        }
    }

    fn set_system(&mut self, text: &str) {
        self.messages.clear();
        if !text.is_empty() {
            self.messages.push(json!({ "role": "system", "content": text }));
        }
    }

    /// Streams the answer to a message and remembers both. After an error the message is forgotten.
    fn answer(&mut self, text: &str) -> Result<Continuation> {
        let started = Instant::now();
        self.messages.push(json!({ "role": "user", "content": text }));
        let answer = self.prompt().and_then(|prompt| self.continue_from(&prompt, started));
        match answer {
            Ok(answer) => {
                self.messages.push(json!({ "role": "assistant", "content": answer.text }));
                Ok(answer)
            }
            Err(e) => {
                self.messages.pop();
                Err(e)
            }
        }
    }

    /// The conversation as tokens; where it leaves no room for an answer, the oldest exchange is dropped for good.
    fn prompt(&mut self) -> Result<Vec<u32>> {
        let context = self.session.config().context as usize;
        let limit = context - context / ANSWER_SHARE;
        loop {
            let text = self.template.render(&Json::Array(self.messages.clone()), None, true)?;
            let ids = prompt_ids(self.session.model(), &text, false)?;
            if ids.len() <= limit {
                return Ok(ids);
            }
            let first = self.messages.iter().position(|m| m["role"] != "system").unwrap_or(0);
            if first + 2 >= self.messages.len() {
                bail!("the message has {} tokens, there is room for {limit}: shorten it, or raise --ctx", ids.len());
            }
            self.messages.drain(first..first + 2);
            note("(the oldest exchange no longer fits and is forgotten)");
        }
    }

    fn continue_from(&mut self, prompt: &[u32], started: Instant) -> Result<Continuation> {
        // What the cache already holds of this conversation is not read again.
        let cached = self.cache.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        self.cache.clear();
        let request = Request { prompt, settings: &self.settings, started };
        let out = &mut self.out;
        let stopped = &self.interrupts.stop;
        let answer = continue_prompt(&mut self.session, self.host.kernels, request, cached, stopped, &mut |text| {
            out.text(text)
        })?;
        self.out.line(if answer.ending == Ending::Interrupted { " …" } else { "" })?;
        self.cache.extend(prompt.iter().chain(&answer.ids).take(answer.cached));
        Ok(answer)
    }
}

/// Ctrl-C: at the prompt it ends the program as usual; during an answer it ends the answer.
struct Interrupts {
    stop: Arc<AtomicBool>,
    waiting: Arc<AtomicBool>,
}

impl Interrupts {
    fn install() -> Result<Self> {
        let (stop, waiting) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        flag::register_conditional_default(SIGINT, Arc::clone(&waiting)).context("cannot watch for Ctrl-C")?;
        flag::register(SIGINT, Arc::clone(&stop)).context("cannot watch for Ctrl-C")?;
        Ok(Self { stop, waiting })
    }

    fn idle(&self) {
        self.waiting.store(true, Ordering::SeqCst);
    }

    fn busy(&self) {
        self.stop.store(false, Ordering::SeqCst);
        self.waiting.store(false, Ordering::SeqCst);
    }
}
