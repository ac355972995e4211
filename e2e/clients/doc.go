// Package clients asks a mesh with the clients that people use, pinned, and compares what
// they return or raise with what OpenAI and Anthropic document. A recorder between them
// keeps every answer, and all are held against the published descriptions of both APIs.
//
// Run by `make test-clients`, with the tag "clients". Its one rule: a call is a row, and
// what the client makes of it is all that counts.
package clients
