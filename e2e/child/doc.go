// Package child starts programs that end with the one that started them, finds
// ports for them, and starts a PostgreSQL whose end is part of a test.
//
// It knows nothing of SIP or of testing: commands use it too. Everything is on
// 127.0.0.1.
package child
