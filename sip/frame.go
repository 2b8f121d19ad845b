package sip

import "bytes"

// SkipLineEnds counts the carriage returns and line feeds at the start of b:
// keep-alives (RFC 5626 section 4.4.1) and what RFC 3261 section 7.5 says to
// ignore before a start line. A stream reader drops them before FrameLen, or
// they stay in its buffer until a message follows.
func SkipLineEnds(b []byte) int {
	for i, c := range b {
		if c != '\r' && c != '\n' {
			return i
		}
	}
	return len(b)
}

// FrameLen finds the end of the first message in b, which came from a stream.
// Line ends before the message count as part of it. It gives 0 when more is
// needed. The error is a *ParseError when the header fields are longer than
// MaxHeaderBytes, the body is longer than MaxBodyBytes, or Content-Length is
// missing, repeated with another value or no number: the stream has lost its
// framing and must be closed (RFC 3261 section 18.3). Before that, Parse tells
// whether the request can still be answered.
//
// The answer depends only on the octets, never on how they arrived.
func FrameLen(b []byte) (n int, err error) {
	start := SkipLineEnds(b)
	end := headerEnd(b, start)
	if end < 0 && len(b)-start > MaxHeaderBytes || end-start > MaxHeaderBytes {
		return 0, &ParseError{Code: 513, Reason: "header fields are longer than 65535 octets"}
	}
	if end < 0 {
		return 0, nil
	}
	length, found := uint32(0), false
	for i := start; i < end; {
		// b[:end] ends in a line feed, so there is always one to find.
		next := i + bytes.IndexByte(b[i:end], '\n') + 1
		if c := b[i] | 0x20; c != 'c' && c != 'l' || i == start {
			i = next
			continue
		}
		for next < end && (b[next] == ' ' || b[next] == '\t') {
			next += bytes.IndexByte(b[next:end], '\n') + 1
		}
		line := b[i:next]
		i = next
		e := 0
		for class[line[e]]&cToken != 0 {
			e++
		}
		v := skipSpace(line, e)
		if line[v] != ':' || lookupHeader(line[:e]) != HdrContentLength {
			continue
		}
		l, over, ok := number(bytes.Trim(line[v+1:], " \t\r\n"))
		switch {
		case !ok:
			return 0, &ParseError{Code: 400, Reason: "Content-Length is not a number"}
		case over || l > MaxBodyBytes:
			return 0, &ParseError{Code: 513, Reason: "body is longer than 1 MiB"}
		case found && l != length:
			return 0, &ParseError{Code: 400, Reason: "Content-Length is there twice with different values"}
		}
		length, found = l, true
	}
	if !found {
		return 0, &ParseError{Code: 400, Reason: "Content-Length is missing"}
	}
	if n = end + int(length); n > len(b) {
		return 0, nil
	}
	return n, nil
}

// headerEnd gives the index after the empty line, -1 if it is not there yet.
func headerEnd(b []byte, i int) int {
	for {
		nl := bytes.IndexByte(b[i:], '\n')
		if nl < 0 {
			return -1
		}
		i += nl + 1
		if i < len(b) && b[i] == '\n' {
			return i + 1
		}
		if i+1 < len(b) && b[i] == '\r' && b[i+1] == '\n' {
			return i + 2
		}
	}
}
