//go:build !unix

package sip

type readiness struct{}

func (in *input) read() (int, error) { return in.readAny() }
