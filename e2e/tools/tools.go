// Package tools pins the development tools of the repository in a module of
// their own, so that the main go.mod holds only what the programs need.
//
// The Makefile builds them; nothing imports this package.
package tools
