package conflict

import (
	"bytes"
	"fmt"
	"slices"
)

// transfer catches a region up by the state of another.
func (s *sim) transfer(from, to int) error {
	if from == to || len(s.regions[from].store.rows) == 0 {
		return nil
	}
	rows := newStore()
	err := ExportState(s.regions[from].store, func(k, v []byte) error {
		return rows.SetMeta(bytes.Clone(k), bytes.Clone(v))
	})
	if err != nil {
		return err
	}
	c, err := s.core(to)
	if err != nil {
		return err
	}
	wall := s.wall(to)
	reg := s.regions[to]
	run := func(c *Core) error { return c.MergeState(wall, rows) }
	s.trace("%s: merges the state of %s, %v into %v", s.settings.Regions[to], s.settings.Regions[from],
		s.regions[from].applied, reg.applied)
	if err := run(c); err != nil {
		return err
	}
	reg.log = append(reg.log, run)
	reg.applied.Join(&s.regions[from].applied)
	if err := s.check(to, c); err != nil {
		return fmt.Errorf("%s with the state of %s: %w", s.settings.Regions[to], s.settings.Regions[from], err)
	}
	before := reg.store.clone()
	if err := run(c); err != nil || !reg.store.equal(before) {
		return fmt.Errorf("a second merge is not idempotent: %v", err)
	}
	return nil
}

// check compares the region with the oracle and with itself.
func (s *sim) check(r int, c *Core) error {
	reg := s.regions[r]
	set := s.oracle.set(reg.applied)
	if got, want := reg.store.graph(), s.oracle.graph(set); got != want {
		return fmt.Errorf("shows\n%s\nshould show\n%s", got, want)
	}
	if c.Status().Applied != reg.applied {
		return fmt.Errorf("applied %v, should be %v", c.Status().Applied, reg.applied)
	}
	if cut := c.Status().Cut; !mutants.cutFromAcks {
		for i := range s.regions {
			if !s.regions[i].applied.Contains(&cut) {
				return fmt.Errorf("cut %v, but region %d has %v", cut, i, s.regions[i].applied)
			}
		}
	}
	status := c.Status()
	if rows, size, conflicts := reg.store.unsettled(); status.Rows != rows || status.Bytes != size || status.Conflicting != conflicts {
		return fmt.Errorf("counts %+v, there are %d rows, %d bytes, %d conflicts", status, rows, size, conflicts)
	}
	if s.h.strategy == Manual {
		if got, want := s.conflicts(r), s.oracle.conflicts(set); !slices.Equal(got, want) {
			return fmt.Errorf("lists the conflicts\n%v\nshould list\n%v", got, want)
		}
	}
	return nil
}

func (s *sim) conflicts(r int) (all []string) {
	open, err := Conflicts(s.regions[r].store, Filter{})
	if err != nil {
		return []string{err.Error()}
	}
	for _, c := range open {
		var versions []string
		for _, v := range c.Versions {
			region, _ := s.settings.index(v.Region)
			value := string(v.Value)
			if c.Key.Field == FieldNode && !v.Deleted {
				value = exists
			}
			versions = append(versions, fmt.Sprintf("%d/%d=%s", region, v.Pos, value))
		}
		slices.Sort(versions)
		all = append(all, fmt.Sprintf("%v %v", c.Key, versions))
	}
	slices.Sort(all)
	return all
}

// quiesce mends all links, delivers everything, and has the regions mark
// until none needs to. Then all show the same, and settled things have no rows.
func (s *sim) quiesce() error {
	s.down = [MaxRegions][MaxRegions]bool{}
	for busy := true; busy; {
		busy = false
		for from := range s.regions {
			for to := range s.regions {
				for from != to && s.regions[to].applied[from] < uint64(len(s.regions[from].stream)) {
					busy = true
					if err := s.deliver(from, to); err != nil {
						return err
					}
				}
			}
		}
		for r := range s.regions {
			before := len(s.regions[r].stream)
			if err := s.mark(r); err != nil {
				return err
			}
			busy = busy || len(s.regions[r].stream) > before
		}
	}
	if err := s.collectAll(); err != nil {
		return err
	}
	for r, reg := range s.regions {
		if got, want := reg.store.graph(), s.regions[0].store.graph(); got != want {
			return fmt.Errorf("%s shows\n%s\n%s shows\n%s", s.settings.Regions[r], got, s.settings.Regions[0], want)
		}
		if s.h.collect && len(s.conflicts(r)) == 0 && len(reg.store.rows) > 1 {
			return fmt.Errorf("%s: rows of settled things: %q", s.settings.Regions[r], reg.store.rows)
		}
	}
	return nil
}

// collectAll has the regions settle what they have put off.
func (s *sim) collectAll() error {
	for r, reg := range s.regions {
		for s.h.collect {
			c, err := s.core(r)
			if err != nil {
				return err
			}
			if c.Status().Uncollected == 0 {
				break
			}
			if err := c.Collect(); err != nil {
				return err
			}
			reg.log = append(reg.log, (*Core).Collect)
			if err := s.check(r, c); err != nil {
				return fmt.Errorf("%s after a collection: %w", s.settings.Regions[r], err)
			}
		}
	}
	return nil
}

// replay runs each region's log on an empty Storage in one transaction, with one
// Save: the state machine is deterministic, rows included, and it does not matter
// to them how entries come together in transactions.
func (s *sim) replay() error {
	for r, reg := range s.regions {
		if len(reg.log) == 0 || mutants.cutFromAcks { // acknowledgements are in no log
			continue
		}
		was := reg.store
		reg.store = newStore()
		c, err := s.core(r)
		if err != nil {
			return err
		}
		c.Hold()
		for i, cmd := range reg.log {
			if err := cmd(c); err != nil {
				return fmt.Errorf("replay of %s, %d: %w", s.settings.Regions[r], i, err)
			}
		}
		if err := c.Save(); err != nil {
			return err
		}
		if !reg.store.equal(was) {
			return fmt.Errorf("replay of %s: another state\n%s\n%q\nwas\n%s\n%q", s.settings.Regions[r],
				reg.store.graph(), reg.store.rows, was.graph(), was.rows)
		}
	}
	return nil
}
