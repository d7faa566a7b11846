-- The shop: customers and their orders. Loaded once, into an empty database.
create table customers (
    id bigint generated always as identity primary key,
    name text not null,
    email text not null,
    city text,
    created_at timestamptz not null default now()
);

create table orders (
    id bigint generated always as identity primary key,
    customer_id bigint not null references customers,
    status text not null default 'paid',
    total numeric(10, 2) not null,
    note text,
    created_at timestamptz not null default now()
);

insert into customers (name, email, city)
select 'Customer ' || n, 'customer' || n || '@example.com', (array['Lisbon', 'Lyon', 'Ghent', 'Turin', 'Porto'])[1 + n % 5]
from generate_series(1, 100) n;

insert into orders (customer_id, status, total, created_at)
select 1 + n % 100, (array['paid', 'paid', 'shipped', 'cancelled'])[1 + n % 4], 5 + (n * 7919 % 20000) / 100.0,
       now() - make_interval(mins => n % 10000)
from generate_series(1, 1000) n;
