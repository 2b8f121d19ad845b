// Package e2e holds the tests of the whole server: the built binary, driven
// over sockets by programs of other people (package peer) and by raw messages.
// It has no code outside its tests and owns nothing.
package e2e
