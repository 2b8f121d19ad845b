// Package crash kills a server again and again while phones use it, and finds
// out whether anything that the server has acknowledged is lost.
//
// The phones are state machines over one socket (UDP, and TCP for what is too
// large). Each knows what was acknowledged, what is in doubt because the server
// died before it answered, and every NOTIFY it has ever seen. After each restart,
// when nothing is under way any more, the following must hold:
//
//   - an acknowledged SUBSCRIBE's dialog answers a refresh with 200 and shows
//     full state; one whose end was acknowledged answers 481;
//   - an acknowledged PUBLISH's entity tag is good, and its document is part of
//     what every watcher holds, by subscription or through a list; nothing else
//     is, but for what is in doubt;
//   - the CSeq of NOTIFYs rises by one, and over a crash by any number; the same
//     CSeq comes again with the same bytes only (CORE-12);
//   - the versions of lists and watcher information rise by one, or by more with
//     full state (EV-25, RL-13, WI-08);
//   - watcher information names each subscription there is, and no other.
//
// In write-back the acknowledgements of the last moments before a kill may be
// lost (Options.Window); how old the oldest of them was is reported.
//
// What a request in doubt may leave behind: a PUBLISH that was stored and not
// answered is a publication whose entity tag nobody knows. It is seen until it
// expires.
//
// Ledger.go holds the rules and does no I/O; phones.go the sockets.
package crash
