package rpcnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// resolveTime bounds the look-up of a name, and how long its result is of use.
const resolveTime = 20 * time.Second

// lookUp is one of a name, for all who dial it.
type lookUp struct {
	done chan struct{}
	to   net.Addr // once done
	err  error
	at   time.Duration // when it was done
}

// resolve waits for a look-up no longer than for the dial that it is for, and leaves it
// going on: where one name server does not answer, the resolver asks the next after
// some seconds, and would begin again with each dial. What came too late serves the next.
func (p *connPool) resolve(ctx context.Context, addr string, limit time.Duration) (net.Addr, error) {
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		return net.UDPAddrFromAddrPort(ap), nil
	}
	p.mu.Lock()
	l := p.names[addr]
	if l == nil || l.at > 0 && p.cfg.clock.Now()-l.at > resolveTime {
		l = &lookUp{done: make(chan struct{})}
		p.names[addr] = l
		p.wg.Go(func() { p.lookUp(addr, l) })
	}
	p.mu.Unlock()
	late := make(chan struct{})
	t := p.cfg.clock.AfterFunc(limit, func() { close(late) })
	defer t.Stop()
	select {
	case <-l.done:
	case <-late:
		return nil, fmt.Errorf("no name server answered within %v", limit)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.names[addr] == l {
		delete(p.names, addr) // it is used
	}
	return l.to, l.err
}

func (p *connPool) lookUp(addr string, l *lookUp) {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	t := p.cfg.clock.AfterFunc(resolveTime, cancel)
	defer t.Stop()
	to, err := p.cfg.resolve(ctx, addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	l.to, l.err, l.at = to, err, p.cfg.clock.Now()
	if err != nil && p.names[addr] == l {
		delete(p.names, addr) // the next dial asks anew
	}
	close(l.done)
}

// resolveUDP turns host:port into an address.
func resolveUDP(ctx context.Context, addr string) (net.Addr, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	best := ips[0]
	for _, ip := range ips { // one address family has to be chosen: prefer IPv4
		if ip.Unmap().Is4() {
			best = ip.Unmap()
			break
		}
	}
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(best, uint16(n))), nil
}
