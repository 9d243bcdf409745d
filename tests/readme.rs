//! The README's program is the example `hello`, which its doctest runs.

#[test]
fn the_readmes_program_is_the_example_hello() {
    let readme = include_str!("../README.md");
    let example = include_str!("../examples/hello.rs");
    let start = example.find("use std::time").unwrap();
    let program = example[start..].trim_end();
    assert!(readme.contains(&format!("```rust\n{program}\n```")), "copy examples/hello.rs into the README");
    assert!(readme.find(program).unwrap() < 200, "on its first screen");
}
