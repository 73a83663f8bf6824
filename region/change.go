package region

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"time"

	"github.com/nornicdb/replication"
)

// settingsChange is the Data of cmdChange and the body of kindChange: what is to
// have another value. The fields are those of settings.
type settingsChange struct {
	MaxClockOffsetMS *uint64 `json:",omitempty"`
	OutboxMaxEntries uint64  `json:",omitempty"` // 0: stays
	OutboxMaxBytes   uint64  `json:",omitempty"` // 0: stays
}

func decodeChange(data []byte) (*settingsChange, error) {
	c := new(settingsChange)
	if err := decodeBody(data, c); err != nil {
		return nil, err
	}
	if c.OutboxMaxEntries > math.MaxInt || c.OutboxMaxBytes > math.MaxInt64 { // the environment could not say so, and no node would start
		return nil, fmt.Errorf("%w: a cap of the outbox is at most %d", replication.ErrInvalidCommand, math.MaxInt)
	}
	return c, nil
}

// changeSettings changes settings of the region. Caps that are lowered take
// effect with the writes to come.
func (t *txn) changeSettings(body []byte) error {
	c, err := decodeChange(body)
	if err != nil {
		return err
	}
	s := *t.settings // which readers outside of the transaction have
	if c.OutboxMaxEntries > 0 {
		s.OutboxMaxEntries = c.OutboxMaxEntries
	}
	if c.OutboxMaxBytes > 0 {
		s.OutboxMaxBytes = c.OutboxMaxBytes
	}
	if c.MaxClockOffsetMS != nil {
		if err := t.core.SetMaxClockOffset(*c.MaxClockOffsetMS); err != nil {
			return err
		}
		s.Conflict.MaxClockOffsetMS = *c.MaxClockOffsetMS
	}
	t.settings, t.resettled = &s, true
	return t.SetMeta([]byte(rowSettings), jsonBody(&s))
}

var _ replication.RegionConfigurer = (*Node)(nil)

// RegionSettings implements replication.RegionConfigurer.
func (n *Node) RegionSettings() (*replication.RegionSettings, error) {
	v, _ := n.machine.now()
	s := v.settings
	if s == nil {
		return nil, fmt.Errorf("%w: the region's settings are not founded", replication.ErrNotReady)
	}
	return &replication.RegionSettings{Region: s.Self, Regions: slices.Clone(s.Conflict.Regions), WriteRegion: s.WriteRegion,
		ConflictStrategy: string(s.Conflict.Strategy), MaxClockOffset: s.clockBound().String(),
		OutboxMaxEntries: s.OutboxMaxEntries, OutboxMaxBytes: s.OutboxMaxBytes}, nil
}

// ChangeRegionSettings implements replication.RegionConfigurer. It can be called
// on any node of the region.
func (n *Node) ChangeRegionSettings(ctx context.Context, q *replication.RegionSettingsChange) error {
	c, err := changeOf(q)
	if err != nil {
		return err
	}
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	_, err = n.inner.ApplyBatch(ctx, []*replication.Command{{Type: cmdChange, Data: data}})
	return err
}

// changeOf refuses what cannot be changed, and what Config.Validate refuses.
func changeOf(q *replication.RegionSettingsChange) (*settingsChange, error) {
	switch {
	case q.ConflictStrategy != "":
		return nil, fmt.Errorf("%w: the conflict strategy cannot be changed: what regions have settled by one and by another differs for good; "+
			"found a new federation with an export", replication.ErrUnsupported)
	case q.Regions != nil:
		return nil, fmt.Errorf("%w: the list of regions cannot be changed: everything that is not settled is kept under places in it; "+
			"found a new federation with an export", replication.ErrUnsupported)
	case q.WriteRegion != nil:
		return nil, fmt.Errorf("%w: which region accepts the writes is changed by a promotion; whether one does or all is founded", replication.ErrUnsupported)
	}
	c := &settingsChange{OutboxMaxEntries: q.OutboxMaxEntries, OutboxMaxBytes: q.OutboxMaxBytes}
	if q.MaxClockOffset != "" {
		d, err := time.ParseDuration(q.MaxClockOffset)
		if err != nil || d < 0 || d%time.Millisecond != 0 {
			return nil, fmt.Errorf("%w: max_clock_offset %.80q: a duration of whole milliseconds, 0 for no bound", replication.ErrInvalidCommand, q.MaxClockOffset)
		}
		ms := uint64(d.Milliseconds())
		c.MaxClockOffsetMS = &ms
	}
	if *c == (settingsChange{}) {
		return nil, fmt.Errorf("%w: nothing to change", replication.ErrInvalidCommand)
	}
	return c, nil
}

// clockBound is how far a remote time may pull the clock; 0: no bound.
func (s *settings) clockBound() time.Duration {
	return time.Duration(s.Conflict.MaxClockOffsetMS) * time.Millisecond
}

// clockBound is that of the region, and until it is founded the environment's.
func (n *Node) clockBound() time.Duration {
	if v, _ := n.machine.now(); v.settings != nil {
		return v.settings.clockBound()
	}
	return n.settings.clockBound()
}

// with is s with what can be changed as of the region.
func (s *settings) with(of *settings) *settings {
	c := *s
	c.OutboxMaxEntries, c.OutboxMaxBytes, c.Conflict.MaxClockOffsetMS = of.OutboxMaxEntries, of.OutboxMaxBytes, of.Conflict.MaxClockOffsetMS
	return &c
}

// followSettings ends a node whose environment is not what its region was founded
// with, which an empty node learns only from the log. What can be changed is
// followed, as what the log says of it first need not be what it says last; the
// next start wants it in the environment.
func (n *Node) followSettings() {
	v, _ := n.machine.now()
	if v.settings == nil || reflect.DeepEqual(v.settings, n.followed) {
		return
	}
	if err := n.settings.with(v.settings).differs(v.settings); err != nil {
		n.alarmed(err)
	} else if err := n.settings.differs(v.settings); err != nil {
		n.rt.Logger.Warn("the region's settings were changed; the environment has to be, before this node starts again", "detail", err.Error())
	}
	n.followed = v.settings
	if tr := n.transport(); tr != nil {
		tr.SetRegions(v.settings.hash(), n.checkRegion)
	}
}
