package netns

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// firewall is a table in the namespace of the process. It sees what comes in from
// the hosts' links and what goes out on them.
type firewall struct {
	mu     sync.Mutex
	table  *nftables.Table
	chains []*nftables.Chain
}

func newFirewall() (*firewall, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("no nftables: %w", err)
	}
	f := &firewall{table: c.AddTable(&nftables.Table{Name: "jepsen", Family: nftables.TableFamilyIPv4})}
	for name, hook := range map[string]*nftables.ChainHook{"in": nftables.ChainHookInput, "out": nftables.ChainHookOutput} {
		f.chains = append(f.chains, c.AddChain(&nftables.Chain{
			Name: name, Table: f.table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
		}))
	}
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("no firewall: %w", err)
	}
	return f, nil
}

// Where addresses are in an IPv4 header.
const (
	sourceAt = 12
	destAt   = 16
)

func (f *firewall) drop(pairs [][2]netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := nftables.New()
	if err != nil {
		return err
	}
	for _, chain := range f.chains { // all in one transaction
		c.FlushChain(chain)
		for _, p := range pairs {
			c.AddRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: sourceAt, Len: 4},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p[0].AsSlice()},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destAt, Len: 4},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p[1].AsSlice()},
				&expr.Counter{},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
	}
	return c.Flush()
}
