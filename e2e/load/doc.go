// Command load drives a SIP presence server over loopback and prints one line
// of JSON: what was offered, what came back, how long it took and, given the
// server's process id, what it cost there.
//
//	go run ./e2e/load pairs    -server 127.0.0.1:5060 -pid PID -c 64 -for 10s
//	go run ./e2e/load overload -server 127.0.0.1:5060 -pid PID
//	go run ./e2e/load idle     -server 127.0.0.1:5060 -pid PID -n 10000
//	go run ./e2e/load fanout   -server 127.0.0.1:5060 -pid PID -k 20 -w 100
//	go run ./e2e/load crash    -kills 50 -seed 1
//	go run ./e2e/load crash    -kills 20 -store postgres -durability write-back
//
// pairs is a closed loop of SUBSCRIBE, 200, NOTIFY, 200. overload finds the
// peak of such a loop, then offers a multiple of it in an open loop while
// established dialogs are refreshed, and measures how soon the peak is back.
// idle holds TCP connections. fanout publishes and waits until every watcher
// has the newest state. crash starts a server of its own, kills it under load
// again and again, and looks for what it had acknowledged (package crash says
// how); the same -seed and numbers give the same moments, as far as the machine
// does the same.
//
// A generator is one goroutine with an Endpoint and a table of Transactions of
// its own, so requests are retransmitted as RFC 3261 section 17.1.2.2 says
// (timers E and F) and every latency includes what that costs. It checks each
// NOTIFY: its dialog, its CSeq, its Subscription-State and its body. It holds
// what was offered and nothing the server did not say; what it could not offer
// in time is counted as missed, never caught up with. When generator_backlog or
// missed are high, it was the generator that was measured: give it a processor
// of its own, away from the server's.
//
// Both phases need a machine that is as fast in one as in the other: peak_cpu and
// goodput.cpu tell how much of a processor the server got. Where others use it,
// -rounds lets the phases alternate.
//
// Recovery is the time from the end of the overload to the beginning of the
// first second in which the closed loop reaches 0.9 of the peak again.
//
// The server must know the domain and let everybody watch, for instance
//
//	rollcall serve --domain example.com --presence-auth open --store memory --durability memory --notify-interval presence=0
//
// Durations are in milliseconds, sizes in bytes, CPU in microseconds. The exit
// status is 1 when something was wrong: an unexpected status, a bad NOTIFY, a
// loss. crash then keeps the server's log and database and says where.
package main
