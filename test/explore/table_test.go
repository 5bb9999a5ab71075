package explore

import "sync"

// table numbers values, from 1: a state holds the number. Numbers mean nothing by
// themselves and are given out as values turn up; equal values have one number.
type table[V comparable] struct {
	mu   sync.RWMutex
	by   map[V]uint32
	list []V
}

func (t *table[V]) number(v V) uint32 {
	t.mu.RLock()
	n, ok := t.by[v]
	t.mu.RUnlock()
	if ok {
		return n
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.by[v]; ok {
		return n
	}
	if t.by == nil {
		t.by = map[V]uint32{}
	}
	t.list = append(t.list, v)
	n = uint32(len(t.list))
	t.by[v] = n
	return n
}

// small is number where few are expected.
func (t *table[V]) small(v V) uint16 {
	n := t.number(v)
	if n > 1<<16-1 {
		panic("explore: too many values for a small number")
	}
	return uint16(n)
}

// at is the value of a number, the zero value of 0.
func (t *table[V]) at(n uint32) (v V) {
	if n == 0 {
		return v
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.list[n-1]
}

// memo remembers a pure function's results.
type memo[K comparable, V any] struct {
	mu sync.RWMutex
	by map[K]V
}

func (m *memo[K, V]) get(k K, work func() V) V {
	m.mu.RLock()
	v, ok := m.by[k]
	m.mu.RUnlock()
	if ok {
		return v
	}
	v = work()
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.by[k]; ok {
		return old
	}
	if m.by == nil {
		m.by = map[K]V{}
	}
	m.by[k] = v
	return v
}
