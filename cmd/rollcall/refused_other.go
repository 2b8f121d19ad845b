//go:build !linux

package main

import "net"

// reportRefused needs a socket option of Linux; elsewhere timer F tells.
func reportRefused(*net.UDPConn) {}
