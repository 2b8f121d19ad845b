//go:build !unix

package xcapclient

const nonblock = 0
