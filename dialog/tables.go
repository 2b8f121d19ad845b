package dialog

// Tables adds up, over all shards, how many entries each table holds that grows
// with what the server is asked to keep: subscriptions, timers, transactions,
// messages that wait. All are 0 when nothing is subscribed, published or under
// way. A component adds its own with a method Tables(add func(name string, n
// int)). It does nothing in shards that have stopped.
func (rt *Runtime) Tables() map[string]int {
	all := make(map[string]int)
	add := func(name string, n int) { all[name] += n }
	rt.Each(func(t *Turn) {
		sh := t.sh
		servers, clients := sh.tx.Live()
		add("dialog subscriptions", sh.subs.len())
		add("dialog remote subscriptions", len(sh.uacs))
		add("dialog timers", sh.wheel.Len())
		add("dialog server transactions", servers)
		add("dialog client transactions", clients)
		add("dialog messages held", len(sh.held))
		add("dialog dialogs parked", len(sh.parked)+len(sh.parkedBy))
		add("dialog octets of texts", sh.arena.live)
		add("dialog windows", len(sh.windows.index))
		add("dialog work for later", len(sh.later))
		sh.box.mu.Lock()
		add("dialog mailbox", len(sh.box.msgs)+len(sh.box.updates)+len(sh.rest))
		sh.box.mu.Unlock()
		for _, c := range sh.components {
			if c, ok := c.(interface{ Tables(func(string, int)) }); ok {
				c.Tables(add)
			}
		}
	})
	add("dialog shared texts", rt.shared.len())
	add("dialog writes not stored", int(rt.commit.writes.Load()))
	return all
}
