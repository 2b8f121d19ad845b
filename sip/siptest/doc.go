// Package siptest makes certificates for tests of TLS. It does no I/O; a
// failure ends the test.
//
//	ca := siptest.NewCA(t)
//	cert := ca.Issue(t, siptest.Leaf{URIs: []string{"sip:example.com"}})
package siptest
