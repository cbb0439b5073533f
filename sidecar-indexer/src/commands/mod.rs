//! What the program does beside running: each command's options and output.

pub mod profile;
pub mod prompt;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};
use std::path::Path;
use warmpath_indexer::config::{Bos, ContentFormat, Model, TokenizerMode};
use warmpath_indexer::zone::Zone;

/// How a model's engine runs: the options of a model in the configuration, under the same names.
#[derive(clap::Args)]
pub struct EngineOptions {
    #[arg(long, value_name = "FILE", help = Model::about("chat_template"))]
    chat_template: Option<String>,
    #[arg(long, visible_alias = "content-format", value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "FORMAT", help = Model::about("chat_template_content_format"))]
    chat_template_content_format: ContentFormat,
    #[arg(long, value_name = "JSON", value_parser = object, help = Model::about("default_chat_template_kwargs"))]
    default_chat_template_kwargs: Option<Map<String, Value>>,
    #[arg(long, help = Model::about("exclude_tools_when_tool_choice_none"))]
    exclude_tools_when_tool_choice_none: bool,
    /// The engine runs with --trust-request-chat-template: render the template that a request brings. Gateways never do:
    /// a client's template could take a worker's memory.
    #[arg(long)]
    pub trust_request_chat_template: bool,
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "WHEN", help = Model::about("bos"))]
    bos: Bos,
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(value_name = "MODE", help = Model::about("tokenizer_mode"))]
    tokenizer_mode: TokenizerMode,
    #[arg(long, help = Model::about("trust_remote_code"))]
    trust_remote_code: bool,
    #[arg(long, help = Model::about("token_ids"))]
    token_ids: bool,
}

impl EngineOptions {
    /// The model as the configuration would have it.
    fn model(self, tokenizer: String) -> Model {
        Model {
            name: tokenizer.clone(),
            aliases: Vec::new(),
            loras: Vec::new(),
            tokenizer,
            chat_template: self.chat_template,
            chat_template_content_format: self.chat_template_content_format,
            default_chat_template_kwargs: self.default_chat_template_kwargs.unwrap_or_default(),
            exclude_tools_when_tool_choice_none: self.exclude_tools_when_tool_choice_none,
            time_zone: Zone::default(),
            bos: self.bos,
            tokenizer_mode: self.tokenizer_mode,
            trust_remote_code: self.trust_remote_code,
            token_ids: self.token_ids,
            self_test: true,
        }
    }
}

/// Sees that the model's files are there. `option` is where they were given.
fn see(model: &Model, option: &str) -> Result<()> {
    let folder = &model.tokenizer;
    ensure!(
        folder.starts_with("tiktoken:") || Path::new(folder).exists(),
        "{option}: {folder:?} is not there; give the folder with the model's tokenizer.json, tekken.json, \
         tokenizer.model or *.tiktoken file, or one of these files"
    );
    Ok(())
}

fn object(text: &str) -> Result<Map<String, Value>> {
    let value: Value = serde_json::from_str(text).context("this is not JSON")?;
    ensure!(value.is_object(), "this is no JSON object such as {{\"enable_thinking\": false}}");
    Ok(value.as_object().cloned().unwrap_or_default())
}
