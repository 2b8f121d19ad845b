// Command rollcall is the SIP presence server and its tools in one binary:
// serve runs the server, demo shows it at work, watch and publish are clients
// for any presence server, list, presentity and subscription ask a running
// Rollcall what it knows, user keeps its users and their passwords, store
// checks, migrates and moves its database, config checks and shows a
// configuration.
//
// It owns the command line: flags, environment and configuration file (in this
// order of precedence), exit codes, what is printed, and a small user agent
// client (client.go, dialog.go) that shares nothing with the server but the
// message and transaction code of package sip.
//
// Invariants:
//   - Data goes to the App's Writer, notes and errors to its ErrWriter, logs
//     too. Nothing is written to os.Stdout or os.Stderr but by main.
//   - Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 not found,
//     4 server unreachable. Only main ends the process.
//   - Text from the network is cleaned of control characters before a person
//     sees it.
//   - A password is never an argument and never leaves the process; hashes do.
//   - Flags and arguments may come in any order.
//   - A user agent's state has one owner goroutine; it never waits for a
//     consumer.
//
// RFC 3261 sections 8.1, 12.2, 17.1.2 and 17.2.2 (user agent), RFC 6665
// section 4.1 (subscriber), RFC 4662 section 5.6 (state of a list), RFC 3903
// section 4 (publisher).
//
//	rollcall serve --domain example.com --xcap /etc/rollcall/xcap
//	rollcall watch sip:friends@example.com --server sip:127.0.0.1:5060
package main
