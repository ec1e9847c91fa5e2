//! The forms of rows: what each becomes, which one a row is taken for, and what is said of a row that fits none.

use serde_json::{Value, json};
use weft::data::formats::{Form, THINKING_INSTRUCTION, conversation};
use weft::data::{Conversation, Message};

fn read(row: &Value, form: Option<&str>) -> Result<Option<Conversation>, String> {
    let form = form.map(|form| serde_json::from_value::<Form>(json!(form)).expect("the form is known"));
    conversation(row.as_object().expect("a row"), form).map_err(|e| e.to_string())
}

fn turns(turns: &[(&str, &str)]) -> Vec<Message> {
    let turn = |(role, content): &(&str, &str)| Message { role: (*role).to_owned(), content: (*content).to_owned() };
    turns.iter().map(turn).collect()
}

/// What a row becomes: the roles and texts of its prompt, and its answer.
#[track_caller]
fn becomes(row: &Value, form: Option<&str>, prompt: &[(&str, &str)], answer: &str) {
    let expected = Conversation { prompt: turns(prompt), answer: answer.to_owned() };
    assert_eq!(read(row, form), Ok(Some(expected)), "{row}");
}

#[track_caller]
fn refused(row: &Value, form: Option<&str>, reason: &str) {
    assert_eq!(read(row, form), Err(reason.to_owned()), "{row}");
}

fn asked(question: &str) -> String {
    format!("{THINKING_INSTRUCTION}\n\n{question}")
}

fn open_r1(more: Value) -> Value {
    let generations = ["<think>\nFive?\n</think>\n\n5", "<think>So", "<think>\nFour.\n</think>\n\n\\boxed{4}"];
    let mut row = json!({ "problem": "2 + 2?", "solution": "4", "answer": "4", "generations": generations,
        "messages": [{ "role": "user", "content": "2 + 2?" }, { "role": "assistant", "content": "x" }] });
    row.as_object_mut().expect("a row").append(&mut more.as_object().expect("fields").clone());
    row
}

#[test]
fn chats() {
    let messages = json!({ "messages": [{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hi", "name": "x" },
        { "role": "assistant", "content": "Yo" }], "prompt": "Hi", "response": "other" });
    becomes(&messages, None, &[("system", "Be brief."), ("user", "Hi")], "Yo");
    becomes(&messages, Some("prompt-response"), &[("user", "Hi")], "other");
    let shared = json!({ "conversations": [{ "from": "human", "value": "Hi" }, { "from": "gpt", "value": "Yo" }] });
    becomes(&shared, None, &[("user", "Hi")], "Yo");
    let with_system = json!({ "system": "Be brief.", "conversations": shared["conversations"] });
    becomes(&with_system, Some("sharegpt"), &[("system", "Be brief."), ("user", "Hi")], "Yo");
    // The one list's name and the other's turns.
    let crossed = json!({ "conversations": messages["messages"] });
    becomes(&crossed, None, &[("system", "Be brief."), ("user", "Hi")], "Yo");
    becomes(&json!({ "messages": shared["conversations"] }), None, &[("user", "Hi")], "Yo");
    refused(
        &json!({ "messages": [{ "role": "user" }] }),
        None,
        "messages[0] has no \"content\"; a turn is {\"role\", \"content\"}",
    );
    refused(
        &json!({ "messages": [{ "role": "user", "content": null }] }),
        None,
        "messages[0].content is null, not a string",
    );
    refused(&json!({ "messages": "Hi" }), None, "messages is \"Hi\", not a list of {\"role\", \"content\"}");
    refused(&json!({ "messages": [] }), None, "messages is empty; the last turn must be the assistant's");
    refused(
        &json!({ "conversations": [{ "from": "narrator", "value": "1" }] }),
        None,
        "conversations holds a turn from \"narrator\"; the known ones are system, developer, human, gpt and tool",
    );
    refused(
        &json!({ "conversations": [{ "from": "human", "value": "Hi" }] }),
        None,
        "conversations ends with a turn of user; the last one must be the assistant's",
    );
}

#[test]
fn replies_by_another_name() {
    becomes(&json!({ "prompt": "Hi", "completion": "Yo" }), None, &[("user", "Hi")], "Yo");
    becomes(&json!({ "prompt": "Hi", "completion": "Yo", "response": "Hey" }), None, &[("user", "Hi")], "Hey");
    let dolly = json!({ "instruction": "Add.", "response": "2", "context": "" });
    becomes(&dolly, None, &[("user", "Add.")], "2");
}

#[test]
fn pairs() {
    let ask = &[("user", "2 + 2?")][..];
    becomes(&json!({ "prompt": "2 + 2?", "response": "4" }), None, ask, "4");
    becomes(&json!({ "question": "2 + 2?", "answer": "<<2+2=4>>4\n#### 4" }), None, ask, "<<2+2=4>>4\n#### 4");
    becomes(&json!({ "problem": "2 + 2?", "solution": "so 4", "answer": "4" }), None, ask, "so 4");
    becomes(&json!({ "problem": "2 + 2?", "solution": null, "answer": "4" }), None, ask, "4");
    becomes(&json!({ "problem": "2 + 2?", "question": "2 + 2?", "answer": "4" }), Some("math"), ask, "4");
    becomes(&json!({ "instruction": "2 + 2?", "input": "", "output": "4" }), None, ask, "4");
    becomes(&json!({ "instruction": "2 + 2?", "output": "4" }), None, ask, "4");
    becomes(
        &json!({ "instruction": "Add.", "input": "2, 2", "output": "4" }),
        Some("alpaca"),
        &[("user", "Add.\n\n2, 2")],
        "4",
    );
    // A column of another form that is null in this row says nothing.
    becomes(&json!({ "messages": null, "prompt": "2 + 2?", "response": "4" }), None, ask, "4");
    refused(&json!({ "prompt": "a", "response": null }), None, "response is null; give it a value or drop the row");
    refused(&json!({ "messages": null }), None, "messages is null; give it a value or drop the row");
    refused(
        &json!({ "instruction": "a" }),
        None,
        "the key \"output\" is missing; a row needs \"instruction\" and \"output\"",
    );
    refused(
        &json!({ "question": "a" }),
        None,
        "the key \"answer\" is missing; a row needs \"question\" and \"answer\"",
    );
    refused(
        &json!({ "prompt": "a", "chosen": "b", "rejected": "c" }),
        None,
        "a pair of a chosen and a rejected answer is not trained on; rename chosen to response to train on it",
    );
    refused(
        &json!({ "prompt": "a", "response": "b" }),
        Some("gsm8k"),
        "the key \"question\" is missing; a row needs \"question\" and \"answer\"",
    );
    refused(&json!({ "prompt": ["a"], "response": "b" }), None, "prompt is [\"a\"], not a string");
    refused(
        &json!({ "prompt": "a", "response": " \n" }),
        None,
        "the answer is empty; drop the row or give it an answer",
    );
}

#[test]
fn a_text_alone_has_no_prompt() {
    becomes(&json!({ "text": " a\n" }), None, &[], " a\n");
    becomes(&json!({ "text": "a", "url": "b", "prompt": null }), None, &[], "a");
    becomes(&json!({ "text": "a", "prompt": "b", "response": "c" }), Some("text"), &[], "a");
    becomes(&json!({ "text": "a", "prompt": "b", "response": "c" }), None, &[("user", "b")], "c");
    // Half of a conversation is a mistake, and no text.
    refused(
        &json!({ "text": "a", "prompt": "b" }),
        None,
        "the key \"response\" is missing; a row needs \"prompt\" and \"response\"",
    );
    assert_eq!(read(&json!({ "text": " \n" }), None), Ok(None));
    refused(&json!({ "text": null }), None, "text is null; give it a value or drop the row");
}

#[test]
fn thinking_sets() {
    let s1k = json!({ "question": "2 + 2?", "solution": "4", "answer": null, "cot_type": "math",
        "thinking_trajectories": ["Two and two."], "attempt": "It is 4." });
    let ask = asked("2 + 2?");
    let (ask, answer) =
        (&[("user", ask.as_str())][..], "<reasoning>Two and two.</reasoning>\n<answer>It is 4.</answer>");
    becomes(&s1k, None, ask, answer);
    becomes(&s1k, Some("s1k"), ask, answer);
    let s1k11 = json!({ "question": "2 + 2?", "answer": "4", "deepseek_thinking_trajectory": "Hm, 4.", "deepseek_attempt": "4",
        "gemini_thinking_trajectory": "x", "gemini_attempt": "y" });
    becomes(&s1k11, None, ask, "<reasoning>Hm, 4.</reasoning>\n<answer>4</answer>");
    refused(
        &s1k11,
        Some("s1k"),
        "the key \"thinking_trajectories\" is missing; a row needs \"question\" and \
        \"thinking_trajectories\" and \"attempt\"",
    );
    refused(
        &json!({ "question": "a", "thinking_trajectories": [], "attempt": "b" }),
        None,
        "thinking_trajectories holds no text; give a list with one",
    );
}

#[test]
fn open_r1_takes_the_first_answer_that_a_check_calls_right() {
    let ask = asked("2 + 2?");
    let ask = &[("user", ask.as_str())][..];
    let (five, four) = (
        "<reasoning>Five?</reasoning>\n<answer>5</answer>",
        "<reasoning>Four.</reasoning>\n<answer>\\boxed{4}</answer>",
    );
    becomes(&open_r1(json!({ "correctness_math_verify": [false, true, true] })), None, ask, four);
    becomes(&open_r1(json!({ "correctness_math_verify": [true, false, true] })), Some("open-r1"), ask, five);
    let judged = json!({ "correctness_math_verify": [false, false, false], "correctness_llama": [false, false, true] });
    becomes(&open_r1(judged), None, ask, four);
    let complete =
        json!({ "correctness_math_verify": [true, true, true], "is_reasoning_complete": [false, false, true] });
    becomes(&open_r1(complete), None, ask, four);
    becomes(&open_r1(json!({})), None, ask, five);
    becomes(&open_r1(json!({ "correctness_math_verify": null })), None, ask, five);
    assert_eq!(
        read(&open_r1(json!({ "correctness_math_verify": [false, true, false] })), None),
        Ok(None),
        "none is whole and right"
    );
    becomes(&open_r1(json!({})), Some("messages"), &[("user", "2 + 2?")], "x");
    let thoughts = json!({ "num_tokens": 9, "messages": [{ "role": "system", "content": "S" }, { "role": "user", "content": "2 + 2?" },
        { "role": "assistant", "content": "<think>\nFour.\n</think>\n4" }] });
    becomes(&thoughts, None, &[("system", "S"), ("user", "2 + 2?")], "<think>\nFour.\n</think>\n4");
    becomes(&thoughts, Some("open-r1"), &[("system", "S"), ask[0]], "<reasoning>Four.</reasoning>\n<answer>4</answer>");
    refused(&json!({ "problem": "a", "generations": "b" }), None, "generations is not a list of strings");
    refused(
        &json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }] }),
        Some("open-r1"),
        "the last turn of messages has no <think> and </think>; use format = \"messages\"",
    );
}
