package locate

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// checkEvery is how often a file is looked at, at most.
	checkEvery = 5 * time.Second
	// hostsTTL is how long an address from the hosts file holds.
	hostsTTL = 30 * time.Second
	// maxFile bounds what is read of a file; the rest is ignored.
	maxFile = 1 << 20
)

// watched is the meaning of a file, read again when the file changed. A file
// that cannot be read leaves what it was.
type watched[T any] struct {
	path  string
	parse func([]byte) T

	mu      sync.Mutex
	checked time.Time
	changed time.Time
	size    int64
	value   T
}

func watch[T any](path string, parse func([]byte) T) *watched[T] {
	return &watched[T]{path: path, parse: parse, value: parse(nil)}
}

func (w *watched[T]) get(now time.Time) T {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.checked.IsZero() && now.Sub(w.checked) < checkEvery {
		return w.value
	}
	w.checked = now
	f, err := os.Open(w.path)
	if err != nil {
		return w.value
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.ModTime().Equal(w.changed) && info.Size() == w.size {
		return w.value
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return w.value
	}
	w.changed, w.size = info.ModTime(), info.Size()
	w.value = w.parse(text)
	return w.value
}

// parseHosts reads a hosts file: for each name, as in key, its addresses.
func parseHosts(text []byte) map[string][]netip.Addr {
	hosts := map[string][]netip.Addr{}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		ip, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		for _, name := range f[1:] {
			name = strings.TrimSuffix(strings.ToLower(name), ".") + "."
			addrs := hosts[name]
			if addAddr(&addrs, ip.AsSlice()) {
				hosts[name] = addrs
			}
		}
	}
	return hosts
}

// parseResolvConf gives the name servers of a resolv.conf(5), never none.
func parseResolvConf(text []byte) (servers []string) {
	conf, err := dns.ClientConfigFromReader(bytes.NewReader(text))
	if err != nil || len(conf.Servers) == 0 {
		return []string{"127.0.0.1:53", "[::1]:53"}
	}
	for _, s := range conf.Servers {
		servers = append(servers, net.JoinHostPort(s, conf.Port))
	}
	return servers
}
