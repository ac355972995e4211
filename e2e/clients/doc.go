// Package clients asks a mesh with the clients that people use, pinned, and compares what
// they return or raise with what OpenAI and Anthropic document; OpenAI's published
// description is held against our answers and events.
//
// Run by `make test-clients`, with the tag "clients". Its one rule: a call is a row, and
// what the client makes of it is all that counts.
package clients
